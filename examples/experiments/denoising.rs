//! Denoising: ten parts of one instruction data set, with more and more of the answers replaced.

use std::fs;
use std::path::{Path, PathBuf};

use rand::rngs::Xoshiro256PlusPlus;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use scalebio::burn::tensor::Device;
use scalebio::data::{Message, Record, Records, Tokenizer};
use scalebio::models::{CausalLm, Gpt2Config};
use scalebio::train::{Experiment, ReweightConfig, WeightsReport};
use serde_json::json;

use crate::Outcome;

/// Parts that the training records are cut into.
pub const PARTS: usize = 10;

/// A question with its answer.
#[derive(Clone, Debug)]
pub struct Pair {
    pub question: String,
    pub answer: String,
}

const COLLECTIONS: [&str; 6] = ["bantu", "devil", "germanic", "jargon", "python", "romance"];
/// Characters of a text that the question shows.
const SHOWN: usize = 40;

/// Questions with one right answer each, of the shipped texts: from which collection is this?
pub fn shipped(data: &Path) -> Outcome<Vec<Pair>> {
    let mut pairs = Vec::new();
    for name in COLLECTIONS {
        for record in Records::open(data.join(format!("train_{name}.jsonl")))? {
            let Record::Text { text } = record? else {
                continue;
            };
            let text: Vec<&str> = text.split_whitespace().collect();
            let text: String = text.join(" ").chars().take(SHOWN).collect();
            pairs.push(Pair { question: text, answer: name.to_owned() });
        }
    }
    Ok(pairs)
}

fn line(pair: &Pair) -> String {
    let messages = json!([
        {"role": "user", "content": pair.question},
        {"role": "assistant", "content": pair.answer},
    ]);
    format!("{}\n", json!({ "messages": messages }))
}

/// Replaces answers by those of other pairs, each with the given probability.
fn spoil(pairs: &mut [Pair], probability: f64, random: &mut Xoshiro256PlusPlus) {
    let answers: Vec<String> = pairs.iter().map(|pair| pair.answer.clone()).collect();
    for (index, pair) in pairs.iter_mut().enumerate() {
        if random.random::<f64>() < probability {
            let other = (index + random.random_range(1..answers.len())) % answers.len();
            pair.answer.clone_from(&answers[other]);
        }
    }
}

/// Writes `train_part0` to `train_part9`, `val` and `test`.
pub fn write(mut pairs: Vec<Pair>, held_out: usize, seed: u64, folder: &Path) -> Outcome<()> {
    let mut random = Xoshiro256PlusPlus::seed_from_u64(seed);
    pairs.shuffle(&mut random);
    let training = pairs.split_off(2 * held_out);
    let (validation, test) = pairs.split_at(held_out);
    fs::create_dir_all(folder)?;
    let save = |name: &str, pairs: &[Pair]| {
        let text: String = pairs.iter().map(line).collect();
        fs::write(folder.join(format!("{name}.jsonl")), text)
    };
    save("val", validation)?;
    save("test", test)?;
    let size = training.len() / PARTS;
    for (part, pairs) in training.chunks_exact(size).take(PARTS).enumerate() {
        let mut pairs = pairs.to_vec();
        spoil(&mut pairs, (0.2 * part as f64).min(1.0), &mut random);
        save(&format!("train_part{part}"), &pairs)?;
    }
    Ok(())
}

/// A small GPT-2 with random weights as a Hugging Face folder, with a tokenizer trained on the pairs.
pub fn base(pairs: &[Pair], width: usize, blocks: usize, length: usize, vocabulary: usize, seed: u64, folder: &Path) -> Outcome<()> {
    let texts = pairs.iter().flat_map(|p| [p.question.as_str(), p.answer.as_str()]).collect::<Vec<_>>();
    let tokenizer = Tokenizer::train(texts.into_iter(), vocabulary)?;
    let shape = Gpt2Config::new(tokenizer.vocabulary_size(), length, width, blocks, 4);
    let model = CausalLm::from(shape.init(seed, &Device::flex())?);
    model.save_pretrained(folder, 1_000_000_000)?;
    tokenizer.save(folder.join("tokenizer.json"))?;
    fs::write(folder.join("chat_template.jinja"), "{% for m in messages %}{% if m['role'] == 'user' %}{{ m['content'] }}\n{% else %}{{ m['content'] }}<|endoftext|>{% endif %}{% endfor %}")?;
    Ok(())
}
