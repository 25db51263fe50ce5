//! Reweighting a pretrained model: a Llama that has read children's stories only gives the source of such stories
//! the largest weight, if stories are what it is validated on.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use scalebio::data::Tokenizer;
use scalebio::models::{CausalLm, Sampling};

use crate::examples::{reweight, weight};

const MODEL: &str = "tests/fixtures/stories260K";

/// Stories that the model itself tells at temperature 1, as records.
fn stories(model: &CausalLm, tokenizer: &Tokenizer, seeds: std::ops::Range<u64>) -> String {
    let beginning = tokenizer.tokens("Once upon a time").unwrap();
    seeds
        .map(|seed| {
            let sampling = Sampling::Temperature {
                temperature: 1.0,
                seed,
            };
            let told = model.generate(&beginning, sampling).unwrap().take(60);
            let ids: Vec<u32> = beginning.iter().copied().chain(told).collect();
            let record = serde_json::json!({ "text": tokenizer.text(&ids).unwrap() });
            format!("{record}\n")
        })
        .collect()
}

#[test]
fn stories260k_gives_stories_the_largest_weight_with_three_seeds() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let model = CausalLm::from_pretrained(root.join(MODEL), &Device::flex()).unwrap();
    let tokenizer = Tokenizer::from_pretrained(root.join(MODEL)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    fs::create_dir(&data).unwrap();
    fs::write(data.join("val.jsonl"), stories(&model, &tokenizer, 0..40)).unwrap();
    fs::write(
        data.join("train_stories.jsonl"),
        stories(&model, &tokenizer, 40..120),
    )
    .unwrap();
    for source in ["devil", "python", "romance"] {
        let file = format!("train_{source}.jsonl");
        let text = fs::read_to_string(root.join("examples/data").join(&file)).unwrap();
        let records: Vec<&str> = text.lines().take(100).collect();
        fs::write(data.join(&file), records.join("\n")).unwrap();
    }
    for seed in ["0", "1", "2"] {
        let arguments = [
            "--data",
            data.to_str().unwrap(),
            "--model",
            MODEL,
            "--seed",
            seed,
        ];
        let more = [
            "--steps",
            "30",
            "--batch",
            "16",
            "--lr-lower",
            "1e-3",
            "--no-compare",
        ];
        let out = folder.path().join(seed);
        let (text, report) = reweight(&out, &[&arguments[..], &more].concat());
        let stories = weight(&report, "stories");
        for source in ["devil", "python", "romance"] {
            assert!(stories > weight(&report, source), "{text}");
        }
        assert!(stories > 0.3, "{text}");
    }
}
