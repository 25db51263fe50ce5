//! Training on one file of records: what is learned, what is written, and that it is the same again.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::data::Tokenizer;
use scalebio::models::{CausalLm, Dtype};
use scalebio::train::{EvaluateConfig, FinetuneConfig, FinetuneStep, Finetuning, evaluate};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::evaluate::stories;
use crate::examples::{example, printed};
use crate::resample::{folder, lines};

fn write(path: &Path, records: &[Value]) {
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(path, lines).unwrap();
}

/// Eight short texts, and settings to train stories260K on them for a few steps.
fn texts(folder: &TempDir) -> FinetuneConfig {
    let data = folder.path().join("train.jsonl");
    let record =
        |i| json!({"text": format!("The {i} green tractors of farm {i} are for sale, call now.")});
    write(&data, &(0..8).map(record).collect::<Vec<_>>());
    FinetuneConfig {
        validation: Some(data.clone()),
        model: Some(stories()),
        steps: 5,
        batch: 4,
        learning_rate: 2e-3,
        ..FinetuneConfig::new(data)
    }
}

fn run(config: &FinetuneConfig, out: PathBuf) -> (Vec<FinetuneStep>, PathBuf) {
    let mut run = Finetuning::start(config.clone(), out).unwrap();
    let steps = run.by_ref().collect::<scalebio::Result<_>>().unwrap();
    (steps, run.save_model().unwrap())
}

/// The losses of every step, the only thing that matters of them here.
fn losses(steps: &[FinetuneStep]) -> Vec<f64> {
    steps.iter().map(|step| step.loss).collect()
}

/// The folder that comes out is a checkpoint whose loss is lower, and `evaluate` agrees with the run on it.
#[test]
fn the_loss_falls_and_the_folder_is_a_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = texts(&folder);
    config.evaluate_every = Some(2);
    let out = folder.path().join("run");
    let (steps, model) = run(&config, out.clone());
    let loss_of = |model: &Path| {
        let mut config = EvaluateConfig::new(model, [config.data.clone()]);
        config.max_length = Some(64);
        evaluate(&config).unwrap().overall.sample_loss
    };
    let (before, after) = (loss_of(&stories()), loss_of(&model));
    assert!(after < before - 0.5, "{before} {after}");
    let measured: Vec<_> = steps.iter().map(|step| step.validation_loss).collect();
    assert!((measured[4].unwrap() - after).abs() < 1e-5);
    assert_eq!(
        measured.iter().map(Option::is_some).collect::<Vec<_>>(),
        [false, true, false, true, true]
    );

    let lines = fs::read_to_string(out.join("metrics.jsonl")).unwrap();
    let lines: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 5);
    for (line, step) in lines.iter().zip(&steps) {
        let of = |name: &str| line[name].as_f64().unwrap();
        assert!((of("loss") - step.loss).abs() < 1e-12);
        assert!((of("learning_rate") - step.learning_rate).abs() < 1e-12);
        assert!(
            line["tokens"].as_u64().unwrap() > 40 && line["gradient_norm"].as_f64().unwrap() > 0.0
        );
    }
    let rates: Vec<f64> = steps.iter().map(|step| step.learning_rate).collect();
    assert!(
        rates.is_sorted_by(|a, b| a > b) && (rates[0] - 2e-3).abs() < 1e-12,
        "{rates:?}"
    );
    let written = fs::read_to_string(out.join("config.json")).unwrap();
    assert_eq!(
        serde_json::from_str::<FinetuneConfig>(&written).unwrap(),
        config
    );
    assert_eq!(
        Tokenizer::from_pretrained(&model)
            .unwrap()
            .vocabulary_size(),
        512
    );

    let error = Finetuning::start(config, &out).unwrap_err().to_string();
    assert!(error.contains("already holds a run"), "{error}");
}

/// A model in bfloat16 is trained, saved and measured as one, and its losses are those of float32 but for rounding.
#[test]
fn a_model_in_bfloat16_is_trained_and_measured_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let wide = texts(&folder);
    let half = FinetuneConfig {
        dtype: Dtype::Bfloat16,
        ..wide.clone()
    };
    let (expected, _) = run(&wide, folder.path().join("wide"));
    let (steps, model) = run(&half, folder.path().join("half"));
    for (a, b) in losses(&steps).iter().zip(losses(&expected)) {
        assert!((a - b).abs() < 0.05, "{a} {b}");
    }
    let saved = fs::metadata(model.join("model.safetensors")).unwrap().len();
    let base = fs::metadata(stories().join("model.safetensors")).unwrap();
    assert!(saved < base.len() * 6 / 10, "{saved} bytes");

    let loss = |dtype| {
        let config = EvaluateConfig {
            dtype,
            max_length: Some(64),
            ..EvaluateConfig::new(&model, [half.data.clone()])
        };
        evaluate(&config).unwrap().overall.sample_loss
    };
    let (narrow, wide) = (loss(Dtype::Bfloat16), loss(Dtype::Float32));
    let measured = steps[4].validation_loss.unwrap();
    assert!((narrow - measured).abs() < 1e-5, "{narrow} {measured}");
    let rounding = (narrow - wide).abs();
    assert!(rounding > 1e-7 && rounding < 0.05, "{narrow} {wide}");
}

/// One seed, one model, with LISA too; another seed, another model.
#[test]
fn a_seed_gives_the_same_model_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let plain = FinetuneConfig {
        steps: 3,
        validation: None,
        ..texts(&folder)
    };
    let lisa = FinetuneConfig {
        lisa_blocks: Some(1),
        lisa_period: 1,
        ..plain.clone()
    };
    let mut models = Vec::new();
    for (index, (config, seed)) in [(&plain, 1), (&plain, 2), (&lisa, 1)]
        .into_iter()
        .enumerate()
    {
        let config = FinetuneConfig {
            seed,
            ..config.clone()
        };
        let read = |name: String| {
            let (steps, model) = run(&config, folder.path().join(name));
            (
                losses(&steps),
                fs::read(model.join("model.safetensors")).unwrap(),
            )
        };
        let (first, again) = (read(format!("{index}")), read(format!("{index} again")));
        assert!(first == again, "{config:?}");
        models.push(first.1);
    }
    assert!(models[0] != models[1] && models[0] != models[2]);
}

/// Gradients are added up over micro-batches: a step is the same, and its loss the mean over all samples.
#[test]
fn micro_batches_change_rounding_only_and_the_first_loss_is_that_of_the_base_model() {
    let folder = tempfile::tempdir().unwrap();
    let whole = FinetuneConfig {
        batch: 8,
        steps: 3,
        ..texts(&folder)
    };
    let cut = FinetuneConfig {
        micro_batch: Some(3),
        ..whole.clone()
    };
    let (a, _) = run(&whole, folder.path().join("whole"));
    let (b, _) = run(&cut, folder.path().join("cut"));
    for (a, b) in losses(&a).iter().zip(losses(&b)) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    let mut config = EvaluateConfig::new(stories(), [whole.data.clone()]);
    config.max_length = Some(64);
    let base = evaluate(&config).unwrap().overall.sample_loss;
    assert!((a[0].loss - base).abs() < 1e-5, "{} {base}", a[0].loss);
}

/// From nothing to right answers: a small model learns three of them by heart, and is asked.
#[test]
fn a_model_that_learned_its_answers_is_scored_by_them() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("train.jsonl");
    let learned = [
        ("How old is Ann?", "She is 7"),
        ("How old is Bob?", "He is 12"),
        ("How old is Cy?", "He is 31"),
    ];
    let records: Vec<Value> = learned
        .iter()
        .map(|(question, answer)| json!({"instruction": question, "output": answer}))
        .collect();
    write(&data, &records);
    let config = FinetuneConfig {
        steps: 60,
        batch: 3,
        ..FinetuneConfig::new(&data)
    };
    let (steps, model) = run(&config, folder.path().join("run"));
    assert!(steps[59].loss < 0.1, "{}", steps[59].loss);
    assert!(CausalLm::from_pretrained(&model, &scalebio::burn::tensor::Device::flex()).is_ok());

    let questions = folder.path().join("questions.json");
    let asked = json!([
        {"question": learned[0].0, "answer": "3 + 4 = 7\n#### 7"},
        {"question": learned[1].0, "answer": "#### 12.0"},
        {"question": learned[2].0, "answer": "#### 30"},
        {"question": learned[2].0, "answer": "It is \\boxed{31}"},
        {"question": learned[2].0.repeat(200), "answer": "#### 31"},
    ]);
    fs::write(&questions, asked.to_string()).unwrap();
    let report = evaluate(&EvaluateConfig {
        answer_tokens: 20,
        ..EvaluateConfig::new(&model, [questions])
    });
    let report = report.unwrap();
    let answers = report.overall.answers.unwrap();
    // The third is wrong; the fourth is not boxed, and the fifth is too long for the model.
    assert_eq!(
        (answers.questions, answers.correct, answers.unanswered),
        (5, 2, 2)
    );
    assert!((answers.exact_match - 0.4).abs() < 1e-12);
    assert_eq!((report.overall.records, report.overall.skipped), (5, 1));
    assert!(report.to_string().contains("2/5"), "{report}");
}

/// The examples are the same functions: weights in, a better model out, and a number for it.
#[test]
fn the_examples_go_from_weights_to_a_measured_model() {
    let files = [
        ("train_a.jsonl", [lines("a", 40), lines("a", 1)].concat()),
        ("train_b.jsonl", lines("b", 2)),
        ("val.jsonl", lines("val", 4)),
    ];
    let data = folder(&files, &[("a", 0.5), ("b", 0.5)]);
    let path = |name: &str| data.path().join(name).to_str().unwrap().to_owned();
    let (mix, run) = (path("mix"), path("run"));
    let (data, weights) = (path(""), path("weights.json"));
    let draw = |more: &[&str]| {
        let always = [
            "--data",
            &data,
            "--weights",
            &weights,
            "--samples",
            "20",
            "--out",
            &mix,
        ];
        example("resample", &[&always[..], more].concat())
    };
    let refused = draw(&[]);
    assert!(!refused.status.success());
    let error = String::from_utf8(refused.stderr).unwrap();
    assert!(error.contains("from source `b`"), "{error}");
    let flags = [
        "--redistribute",
        "--keep-duplicates",
        "--weight-column",
        "--no-shuffle",
    ];
    let table = printed(&draw(&[&flags[..], &["--seed", "3"]].concat()));
    assert!(
        table.contains("duplicates") && table.contains("mix.jsonl"),
        "{table}"
    );
    let report = fs::read_to_string(Path::new(&mix).join("resample.json")).unwrap();
    let report: Value = serde_json::from_str(&report).unwrap();
    assert_eq!(report["sources"][0]["available"], 41);
    assert_eq!(report["sources"][1]["samples"], 2);
    assert_eq!(report["config"]["seed"], 3);
    let samples = fs::read_to_string(Path::new(&mix).join("mix.jsonl")).unwrap();
    assert!(samples.lines().all(|line| line.contains("\"weight\":")));

    let (samples, model) = (format!("{mix}/mix.jsonl"), stories());
    let model = model.to_str().unwrap();
    let (val, steps) = (
        format!("{data}/val.jsonl"),
        ["--steps", "2", "--batch", "4", "--lr", "1e-4"],
    );
    let more = [
        "--model",
        model,
        "--val",
        &val,
        "--evaluate-every",
        "1",
        "--out",
        &run,
    ];
    let text = printed(&example(
        "finetune",
        &[&[samples.as_str()][..], &steps, &more].concat(),
    ));
    assert_eq!(text.matches("validation loss").count(), 2, "{text}");
    let table = printed(&example("evaluate", &[&format!("{run}/model"), &val]));
    assert!(table.contains("overall"), "{table}");
}
