//! A checkpoint's config.json: typed values with the defaults of transformers, and errors that name key, value and file.
//!
//! All keys are kept, so that what is saved means what was loaded.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{activation::Activation, pretrained::CONFIG};
use crate::error::{Error, Result};

/// Far above any model, and low enough that no product of two sizes overflows.
const LARGEST: usize = 1 << 24;

/// More blocks than any model has.
const MOST_BLOCKS: usize = 10_000;

/// Options of transformers that change what a decoder computes and that no architecture here has.
const UNSUPPORTED: [&str; 14] = [
    "add_cross_attention",
    "attention_multiplier",
    "clip_qkv",
    "embedding_multiplier",
    "is_encoder_decoder",
    "logits_scaling",
    "num_local_experts",
    "pruned_heads",
    "qk_layernorm",
    "quantization_config",
    "residual_multiplier",
    "use_bidirectional_attention",
    "use_mrope",
    "use_qk_norm",
];

/// The content of a config.json.
#[derive(Clone, Debug)]
pub(super) struct Settings {
    path: PathBuf,
    values: Map<String, Value>,
}

impl Settings {
    /// Reads a folder's config.json.
    pub fn read(dir: &Path) -> Result<Self> {
        Self::open(dir.join(CONFIG))
    }

    /// Reads a file with the content of a config.json.
    pub fn open(path: PathBuf) -> Result<Self> {
        let text = fs::read(&path).map_err(|e| Error::io(&path, e))?;
        let values = serde_json::from_slice(&text).map_err(|e| Error::file(&path, e))?;
        Ok(Self { path, values })
    }

    /// All keys.
    pub fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    /// The value of a key, if it is there and not null.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// An error about the value of a key.
    pub fn refuse(&self, key: &str, allowed: impl ToString, remedy: &str) -> Error {
        let given = self.values.get(key).unwrap_or(&Value::Null);
        let allowed = allowed.to_string();
        let message = format!("`{key}` is {given}, but must be {allowed}; {remedy}");
        Error::file(&self.path, message)
    }

    /// A size from 1; `default` where it is not given.
    pub fn size(&self, key: &str, default: usize) -> Result<usize> {
        self.size_up_to(LARGEST, key, default)
    }

    /// The number of blocks.
    pub fn blocks(&self, default: usize) -> Result<usize> {
        self.size_up_to(MOST_BLOCKS, "num_hidden_layers", default)
    }

    fn size_up_to(&self, largest: usize, key: &str, default: usize) -> Result<usize> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        value
            .as_u64()
            .map(|size| usize::try_from(size).unwrap_or(usize::MAX))
            .filter(|size| (1..=largest).contains(size))
            .ok_or_else(|| {
                let allowed = format!("a whole number from 1 to {largest}");
                self.refuse(key, allowed, "correct it")
            })
    }

    /// A size that null switches off; `default` where the key is not there at all.
    pub fn size_or_off(&self, key: &str, default: Option<usize>) -> Result<Option<usize>> {
        match self.values.get(key) {
            None => Ok(default),
            Some(Value::Null) => Ok(None),
            Some(_) => self.size(key, 1).map(Some),
        }
    }

    /// A positive number; `default` where it is not given.
    pub fn positive(&self, key: &str, default: f64) -> Result<f64> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        positive(value).ok_or_else(|| self.refuse(key, "a positive number", "correct it"))
    }

    /// A positive number that null switches off; `default` where the key is not there at all.
    pub fn positive_or_off(&self, key: &str, default: f64) -> Result<Option<f64>> {
        match self.values.get(key) {
            Some(Value::Null) => Ok(None),
            _ => self.positive(key, default).map(Some),
        }
    }

    /// The token whose row of the embedding lookups do not train, `pad_token_id`; counted from the end if negative.
    pub fn padding(&self, vocabulary: usize) -> Result<Option<i64>> {
        let Some(value) = self.get("pad_token_id") else {
            return Ok(None);
        };
        let size = vocabulary as i64;
        value
            .as_i64()
            .filter(|id| (-size..size).contains(id))
            .map(|id| Some(id.rem_euclid(size)))
            .ok_or_else(|| {
                let allowed = format!("null or a token below {vocabulary} (vocab_size)");
                self.refuse("pad_token_id", allowed, "correct it")
            })
    }

    /// A switch; `default` where it is not given.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.get(key) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(*flag),
            Some(_) => Err(self.refuse(key, "true or false", "correct it")),
        }
    }

    /// A non-linearity by name; `default` where it is not given.
    pub fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(value) = self.get(key) else {
            return Ok(default);
        };
        serde_json::from_value(value.clone()).map_err(|_| {
            let allowed = "gelu, gelu_new, gelu_fast, gelu_pytorch_tanh, relu, silu or swish";
            self.refuse(key, allowed, "no other activation is supported")
        })
    }

    /// Which blocks look back no further than a sliding window: `layer_types`, or where it is not given, what `rule` says
    /// of a block.
    pub fn sliding(&self, blocks: usize, rule: impl Fn(usize) -> bool) -> Result<Vec<bool>> {
        let Some(value) = self.get("layer_types") else {
            return Ok((0..blocks).map(rule).collect());
        };
        let kind = |value: &Value| match value.as_str() {
            Some("full_attention") => Some(false),
            Some("sliding_attention") => Some(true),
            _ => None,
        };
        let types = value.as_array().filter(|types| types.len() == blocks);
        types
            .and_then(|types| types.iter().map(kind).collect())
            .ok_or_else(|| {
                let allowed = format!(
                    "a list of {blocks} (num_hidden_layers) times full_attention or sliding_attention"
                );
                self.refuse("layer_types", allowed, "no other layer is supported")
            })
    }

    /// Refuses the options that would change the result and that no architecture here has.
    pub fn check_options(&self) -> Result<()> {
        // What switches such an option off.
        let off = |value: &Value| match value {
            Value::Null | Value::Bool(false) => true,
            Value::Object(map) => map.is_empty(),
            Value::Array(list) => list.is_empty(),
            Value::Number(number) => number.as_f64() == Some(1.0),
            Value::Bool(true) | Value::String(_) => false,
        };
        for key in UNSUPPORTED {
            if self.values.get(key).is_some_and(|value| !off(value)) {
                return Err(self.refuse(key, "absent or off", "this option is not supported"));
            }
        }
        Ok(())
    }
}

/// The value, if it is a finite number above 0.
pub(super) fn positive(value: &Value) -> Option<f64> {
    value.as_f64().filter(|v| v.is_finite() && *v > 0.0)
}
