//! The base model of an experiment: a small GPT-2 that has read some text, as a Hugging Face folder.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::burn::tensor::Device;
use scalebio::data::Tokenizer;
use scalebio::models::{CausalLm, Gpt2Config};
use scalebio::train::{FinetuneConfig, Finetuning};
use serde_json::json;

use crate::Outcome;

/// Larger than any file here.
const SHARD: u64 = 1_000_000_000;
/// A question on a line of its own, then the answer.
const TEMPLATE: &str = "{% for m in messages %}{{ m['content'] }}\
                        {{ '\\n' if m['role'] == 'user' else '<|endoftext|>' }}{% endfor %}";

/// Shape and pretraining.
#[derive(Clone, Copy, Debug)]
pub struct Base {
    pub vocabulary: usize,
    pub width: usize,
    pub blocks: usize,
    pub heads: usize,
    /// Longest sequence.
    pub length: usize,
    /// Steps of pretraining, 0 for random weights; of `batch` texts each.
    pub steps: usize,
    pub batch: usize,
}

impl Base {
    /// Trains a tokenizer and a model on `texts`, and returns the model's folder, which is in `folder`.
    pub fn make(&self, texts: &[&str], seed: u64, folder: &Path) -> Outcome<PathBuf> {
        let initial = folder.join("initial");
        let tokenizer = Tokenizer::train(texts.iter(), self.vocabulary)?;
        let vocabulary = tokenizer.vocabulary_size();
        let shape = Gpt2Config::new(vocabulary, self.length, self.width, self.blocks, self.heads);
        let model = CausalLm::from(shape.init(seed, &Device::flex())?);
        model.save_pretrained(&initial, SHARD)?;
        tokenizer.save(initial.join("tokenizer.json"))?;
        let mut model = initial.clone();
        if self.steps > 0 {
            let file = folder.join("texts.jsonl");
            let lines = texts
                .iter()
                .map(|text| format!("{}\n", json!({ "text": text })));
            fs::write(&file, lines.collect::<String>())?;
            let config = FinetuneConfig {
                model: Some(initial),
                steps: self.steps,
                batch: self.batch,
                max_length: self.length,
                seed,
                ..FinetuneConfig::new(file)
            };
            let mut run = Finetuning::start(config, folder.join("pretraining"))?;
            for step in run.by_ref() {
                step?;
            }
            model = run.save_model()?;
        }
        fs::write(model.join("chat_template.jinja"), TEMPLATE)?;
        Ok(model)
    }
}
