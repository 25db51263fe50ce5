//! The tokenizer of a model's folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::chat::ChatTemplate;
use super::{Message, Record, Sample, Segment, Tokenizer};
use crate::error::{Error, Result};

impl Tokenizer {
    /// Reads the tokenizer of a Hugging Face model's folder: tokenizer.json, and from tokenizer_config.json, if it is there,
    /// the token that ends a text; and the chat template, from chat_template.jinja or tokenizer_config.json, if there is one.
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
        let mut tokenizer = match settings.token("eos_token") {
            Some(end) => tokenizer
                .with_end_of_text(end)
                .map_err(|e| Error::file(&path, e))?,
            None => tokenizer,
        };
        let file = folder.join("chat_template.jinja");
        let found = match file.exists() {
            true => Some((
                fs::read_to_string(&file).map_err(|e| Error::io(&file, e))?,
                &file,
            )),
            false => settings.chat_template().map(|source| (source, &path)),
        };
        if let Some((source, path)) = found {
            let token = |key| settings.token(key).unwrap_or_default();
            let template = ChatTemplate::new(source, token("bos_token"), token("eos_token"));
            tokenizer.chat = Some(template.map_err(|e| Error::file(path, e))?);
        }
        Ok(tokenizer)
    }

    /// Turns a record into tokens. A conversation is written down with the model's chat template; of it, what the assistant
    /// says is learned, with the mark that ends its turn.
    ///
    /// # Errors
    ///
    /// As [`encode`](Self::encode); [`Error::Objective`] for a conversation if there is no chat template
    /// ([`from_pretrained`](Self::from_pretrained) reads it), or if the template refuses it.
    pub fn encode_record(&self, record: Record) -> Result<Sample> {
        let is_chat = record.is_chat();
        self.encode_segments(&self.segments(record)?, is_chat)
    }

    /// The segments of a record.
    pub(super) fn segments(&self, record: Record) -> Result<Vec<Segment>> {
        let Record::Chat { messages } = record else {
            return Ok(record.into_segments());
        };
        self.template()
            .and_then(|template| template.segments(&messages))
            .map_err(|message| Error::Objective(message.into()))
    }

    /// Turns the segments of a record into tokens. A chat template writes special tokens itself.
    pub(super) fn encode_segments(&self, segments: &[Segment], is_chat: bool) -> Result<Sample> {
        match is_chat {
            true => self.encode_as_it_is(segments),
            false => self.encode(segments),
        }
    }

    /// Turns a conversation into the tokens after which the model goes on as the assistant, as its chat template writes them.
    ///
    /// # Errors
    ///
    /// As [`encode_record`](Self::encode_record).
    pub fn chat_prompt(&self, messages: &[Message]) -> Result<Vec<u32>> {
        let text = self
            .template()
            .and_then(|template| template.prompt(messages))
            .map_err(|message| Error::Objective(message.into()))?;
        let learned = false;
        Ok(self.encode_as_it_is(&[Segment { text, learned }])?.ids)
    }

    fn template(&self) -> std::result::Result<&ChatTemplate, String> {
        self.chat.as_ref().ok_or_else(|| {
            "a conversation needs the chat template of the model; use a model whose folder has \
             chat_template.jinja, or `chat_template` in tokenizer_config.json"
                .to_owned()
        })
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

    /// The template; of several with names, the one called `default`.
    fn chat_template(&self) -> Option<String> {
        match self.0.get("chat_template")? {
            Value::String(source) => Some(source.clone()),
            Value::Array(named) => named
                .iter()
                .find(|entry| entry["name"] == "default")?
                .get("template")?
                .as_str()
                .map(str::to_owned),
            _ => None,
        }
    }

    /// A special token, which is a text or an object with the text as `content`.
    pub(super) fn token(&self, key: &str) -> Option<&str> {
        let value = self.0.get(key)?;
        value.get("content").unwrap_or(value).as_str()
    }
}
