//! Folders of models that are not whole.

use std::fs;
use std::path::Path;

use scalebio::burn::tensor::Device;
use scalebio::data::Tokenizer;
use scalebio::models::CausalLm;
use serde_json::{Value, json};

use super::{Row, message};
use crate::evaluate::stories;

/// The message for a copy of stories260K after something was done to it.
fn damaged(change: impl FnOnce(&Path)) -> String {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(stories().join(name), folder.path().join(name)).unwrap();
    }
    change(folder.path());
    let model = CausalLm::from_pretrained(folder.path(), &Device::flex());
    message(model.and_then(|_| Tokenizer::from_pretrained(folder.path())))
}

fn with_config(key: &str, value: Value) -> String {
    damaged(|folder| {
        let path = folder.join("config.json");
        let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        config[key] = value;
        fs::write(path, config.to_string()).unwrap();
    })
}

fn with_tensors(change: impl FnOnce(&mut Vec<u8>)) -> String {
    damaged(|folder| {
        let path = folder.join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(path, bytes).unwrap();
    })
}

fn with_file(name: &str, content: &str) -> String {
    damaged(|folder| fs::write(folder.join(name), content).unwrap())
}

pub(super) fn rows() -> Vec<Row> {
    let nan = |bytes: &mut Vec<u8>| {
        let end = bytes.len() - 4;
        bytes[end..].copy_from_slice(&f32::NAN.to_le_bytes());
    };
    vec![
        (
            "no config.json",
            "config.json: No such file",
            damaged(|folder| fs::remove_file(folder.join("config.json")).unwrap()),
        ),
        (
            "an architecture that is not supported",
            "but must be gpt2, gpt_neox, llama, mistral, qwen2 or gemma2",
            with_config("model_type", json!("t5")),
        ),
        (
            "an activation that is not supported",
            "hidden_act",
            with_config("hidden_act", json!("quick_gelu")),
        ),
        (
            "no tensors",
            "model.safetensors: No such file",
            damaged(|folder| fs::remove_file(folder.join("model.safetensors")).unwrap()),
        ),
        (
            "a file of tensors that is cut",
            "not a complete safetensors file",
            with_tensors(|bytes| bytes.truncate(5000)),
        ),
        (
            "tensors that are missing",
            "missing: ",
            with_config("num_hidden_layers", json!(6)),
        ),
        (
            "tensors that are not part of the model",
            "not part of the model: ",
            with_config("num_hidden_layers", json!(4)),
        ),
        (
            "tensors of another shape",
            "of another shape: ",
            with_config("intermediate_size", json!(171)),
        ),
        ("a value that is not finite", "holds NaN", with_tensors(nan)),
        (
            "a tokenizer.json that is none",
            "not a tokenizer.json of Hugging Face's `tokenizers`",
            with_file("tokenizer.json", "{}"),
        ),
        (
            "an end of text that is no token",
            "end of text is `<end>`, but must be a token in the vocabulary",
            with_file("tokenizer_config.json", "{\"eos_token\": \"<end>\"}"),
        ),
        (
            "a chat template that is none",
            "the chat template cannot be read",
            with_file("chat_template.jinja", "{% for %}"),
        ),
    ]
}
