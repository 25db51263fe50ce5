//! The tokenizer of a model's folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::Tokenizer;
use crate::error::{Error, Result};

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face model's folder: tokenizer.json, and from tokenizer_config.json, if it is there,
    /// the token that ends a text.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::File`] for a file that cannot be read, is not what it should be, or names an end of text
    /// that is not in the vocabulary.
    pub fn from_pretrained(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let tokenizer = Self::from_file(folder.join("tokenizer.json"))?;
        let path = folder.join("tokenizer_config.json");
        let settings = Settings::read(&path)?;
        match settings.token("eos_token") {
            Some(end) => tokenizer
                .with_end_of_text(end)
                .map_err(|e| Error::file(&path, e)),
            None => Ok(tokenizer),
        }
    }
}

/// The content of a tokenizer_config.json.
#[derive(Debug)]
pub(super) struct Settings(Map<String, Value>);

impl Settings {
    /// Reads the file; without it, nothing is set.
    pub(super) fn read(path: &Path) -> Result<Self> {
        if !path.exists() {
            return Ok(Self(Map::new()));
        }
        let text = fs::read(path).map_err(|e| Error::io(path, e))?;
        let settings = serde_json::from_slice(&text).map_err(|e| Error::file(path, e))?;
        Ok(Self(settings))
    }

    /// A special token, which is a text or an object with the text as `content`.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?;
        value.get("content").unwrap_or(value).as_str()
    }
}
