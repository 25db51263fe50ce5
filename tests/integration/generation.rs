//! Continuing and scoring texts: the cache changes nothing, and a real model says what its reference says.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::{Device, Int, Tensor};
use scalebio::Error;
use scalebio::data::Tokenizer;
use scalebio::models::{CausalLm, Sampling};
use serde_json::Value;

use crate::examples::{example, printed};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn stories() -> PathBuf {
    fixtures().join("stories260K")
}

fn open(folder: &Path) -> CausalLm {
    CausalLm::from_pretrained(folder, &Device::flex().autodiff()).unwrap()
}

/// The most likely continuation, each token from the whole text before it.
fn without_cache(model: &CausalLm, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut tokens: Vec<i64> = prompt.iter().map(|id| i64::from(*id)).collect();
    for _ in 0..count {
        let ids = Tensor::<1, Int>::from_data(tokens.as_slice(), &model.device());
        let ids = ids.unsqueeze::<2>();
        let logits = model.logits(ids.clone(), ids.ones_like());
        let last = logits.narrow(1, tokens.len() - 1, 1).argmax(2);
        tokens.push(last.into_data().iter::<i64>().next().unwrap());
    }
    tokens[prompt.len()..].iter().map(|id| *id as u32).collect()
}

#[test]
fn the_greedy_continuation_is_the_same_with_a_cache_and_without() {
    for set in ["hf", "hf_variants"] {
        for entry in fs::read_dir(fixtures().join(set)).unwrap() {
            let folder = entry.unwrap().path();
            let model = open(&folder);
            // Longer than the sliding windows.
            let prompt = [7, 3, 11];
            let cached = model.generate(&prompt, Sampling::Greedy).unwrap();
            let cached: Vec<u32> = cached.take(20).collect();
            let all = without_cache(&model, &prompt, 20);
            assert_eq!(cached, all, "{}", folder.display());
        }
    }
}

#[test]
fn a_continuation_ends_at_the_longest_sequence() {
    let model = open(&fixtures().join("hf_variants/gemma-legacy"));
    let longest = model.longest_sequence();
    let count = |prompt: &[u32]| model.generate(prompt, Sampling::Greedy).unwrap().count();
    assert_eq!(count(&[1, 2, 3]), longest - 2);
    assert_eq!(count(&vec![1; longest]), 1);
}

#[test]
fn a_seed_gives_the_same_draws_and_a_low_temperature_the_most_likely_tokens() {
    let model = open(&stories());
    let draw = |temperature, seed| -> Vec<u32> {
        let sampling = Sampling::Temperature { temperature, seed };
        model.generate(&[1], sampling).unwrap().take(30).collect()
    };
    let greedy: Vec<u32> = model
        .generate(&[1], Sampling::Greedy)
        .unwrap()
        .take(30)
        .collect();
    assert_eq!(draw(1.0, 3), draw(1.0, 3));
    assert_ne!(draw(1.0, 3), draw(1.0, 4));
    assert_eq!(draw(1e-3, 3), greedy);
}

#[test]
fn draws_have_the_probabilities_of_the_model() {
    let model = open(&stories());
    let logits = {
        let ids = Tensor::<2, Int>::from_data([[1]], &model.device());
        let logits = model.logits(ids.clone(), ids.ones_like());
        logits.into_data().iter::<f64>().collect::<Vec<_>>()
    };
    let temperature = 1.5;
    let total: f64 = logits.iter().map(|logit| (logit / temperature).exp()).sum();
    let mut counts = vec![0.0; logits.len()];
    let draws = 2_000;
    for seed in 0..draws {
        let sampling = Sampling::Temperature { temperature, seed };
        let token = model.generate(&[1], sampling).unwrap().next().unwrap();
        counts[token as usize] += 1.0 / draws as f64;
    }
    for (logit, share) in logits.iter().zip(&counts) {
        let probability = (logit / temperature).exp() / total;
        // Four standard deviations.
        let spread = 4.0 * (probability * (1.0 - probability) / draws as f64).sqrt();
        assert!(
            (share - probability).abs() <= spread + 2e-3,
            "{share} {probability}"
        );
    }
}

#[test]
fn prompts_and_temperatures_that_cannot_work_are_refused() {
    let model = open(&stories());
    let refused = |prompt: &[u32], sampling, name: &str| {
        let error = model.generate(prompt, sampling).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error:?}");
        assert!(error.to_string().starts_with(name), "{error}");
    };
    refused(&[], Sampling::Greedy, "prompt is 0");
    refused(&[1; 513], Sampling::Greedy, "prompt is 513");
    refused(&[1, 512], Sampling::Greedy, "a token of the prompt is 512");
    for temperature in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let sampling = Sampling::Temperature {
            temperature,
            seed: 0,
        };
        refused(&[1], sampling, "temperature is");
    }
}

#[test]
fn a_tokenizer_turns_tokens_into_text_again() {
    let tokenizer = Tokenizer::from_pretrained(stories()).unwrap();
    let tokens = tokenizer.tokens("Lily saw a cat.").unwrap();
    assert_eq!(tokens[0], 1); // start of text, and no end
    assert_eq!(tokenizer.text(&tokens).unwrap(), "Lily saw a cat.");
}

#[test]
fn generate_continues_a_story_in_english() {
    let folder = stories();
    let arguments = [folder.to_str().unwrap(), "--prompt", "Once upon a time"];
    let story = printed(&example("generate", &arguments));
    let begin = "Once upon a time, there was a little girl named Lily. She loved to play outside";
    assert!(story.starts_with(begin), "{story}");
}

#[test]
fn score_agrees_with_transformers() {
    let file = stories().join("expected.json");
    let expected: Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
    let folder = stories();
    let arguments = [folder.to_str().unwrap(), "--texts", file.to_str().unwrap()];
    let lines = printed(&example("score", &arguments));
    let lines: Vec<&str> = lines.lines().collect();
    let expected = expected.as_array().unwrap();
    assert_eq!(lines.len(), expected.len());
    for (line, expected) in lines.iter().zip(expected) {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["text"], expected["text"]);
        assert_eq!(line["tokens"], expected["input_ids"]);
        assert_eq!(line["last_argmax"], expected["last_logits_argmax"]);
        let error = line["mean_nll"].as_f64().unwrap() - expected["mean_nll"].as_f64().unwrap();
        assert!(error.abs() < 1e-3, "{line}");
    }
}
