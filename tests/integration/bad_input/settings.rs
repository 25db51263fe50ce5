//! Settings and flags that cannot work.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::burn::tensor::Device;
use scalebio::data::Tokenizer;
use scalebio::models::{CausalLm, Offloading, Sampling};
use scalebio::train::{
    EvaluateConfig, Experiment, FinetuneConfig, Finetuning, ReweightConfig, evaluate,
};

use super::{Row, message};
use crate::evaluate::stories;
use crate::resample::lines;

/// The message for settings of `reweight`, which are checked before the data are read.
fn reweight(change: impl FnOnce(&mut ReweightConfig)) -> String {
    let mut config = ReweightConfig::new("examples/data");
    change(&mut config);
    message(Experiment::open(config))
}

fn finetune(change: impl FnOnce(&mut FinetuneConfig)) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mix.jsonl");
    fs::write(&path, lines("a", 3)).unwrap();
    let mut config = FinetuneConfig::new(path);
    config.batch = 2;
    change(&mut config);
    let out = folder.path().join("out");
    let message = message(Finetuning::start(config, &out));
    assert!(!out.exists(), "{message}");
    message
}

fn measure(change: impl FnOnce(&mut EvaluateConfig)) -> String {
    let mut config = EvaluateConfig::new(stories(), [PathBuf::from("examples/data/val.jsonl")]);
    change(&mut config);
    message(evaluate(&config))
}

pub(super) fn rows() -> Vec<Row> {
    let prompt = |tokens: &[u32]| {
        let model = CausalLm::from_pretrained(stories(), &Device::flex()).unwrap();
        message(model.generate(tokens, Sampling::Greedy))
    };
    let other = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/hf/gpt2");
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("metrics.jsonl"), "").unwrap();
    let full = {
        let mut config = FinetuneConfig::new("examples/data/val.jsonl");
        config.model = Some(stories());
        message(Finetuning::start(config, folder.path()))
    };
    vec![
        (
            "no step",
            "steps is 0, but must be at least 1",
            reweight(|c| c.steps = 0),
        ),
        (
            "a learning rate of the model that is not above 0",
            "learning rate of the model (lr-lower) is learning rate 0",
            reweight(|c| c.lr_lower = 0.0),
        ),
        (
            "a learning rate of the weights that is no number",
            "learning rate of the source weights (lr-upper) is learning rate NaN",
            reweight(|c| c.lr_upper = f64::NAN),
        ),
        (
            "a penalty that is not above 0",
            "penalty is ",
            reweight(|c| c.alpha = 0.0),
        ),
        (
            "a clipping norm that is not above 0",
            "clip is -1",
            reweight(|c| c.clip = Some(-1.0)),
        ),
        (
            "a sample of one token",
            "max length is 1, but must be at least 2",
            reweight(|c| c.max_length = 1),
        ),
        (
            "a device that is not known",
            "device `tpu`: ",
            reweight(|c| c.device = "tpu".to_owned()),
        ),
        (
            "offloading where no block is frozen",
            "offload is frozen without lisa-blocks, but must be a run in which blocks are frozen",
            reweight(|c| c.offload = Some(Offloading::Frozen)),
        ),
        (
            "offloading with gradients on one tape",
            "offload is asked for with gradients on one tape, but must be gradients block by block",
            reweight(|c| {
                (c.lisa_blocks, c.blockwise) = (Some(1), Some(false));
                c.offload = Some(Offloading::FrozenAndMoments);
            }),
        ),
        (
            "a batch of more samples than there are",
            "batch is 4 samples, but must be from 1 to 3 samples",
            finetune(|c| c.batch = 4),
        ),
        (
            "a micro-batch of nothing",
            "micro-batch is 0, but must be at least 1",
            finetune(|c| c.micro_batch = Some(0)),
        ),
        (
            "a measurement every 0 steps",
            "evaluate-every is 0, but must be at least 1",
            finetune(|c| c.evaluate_every = Some(0)),
        ),
        (
            "measurements without a file",
            "evaluate-every is given without a validation file",
            finetune(|c| c.evaluate_every = Some(5)),
        ),
        (
            "more blocks for LISA than there are",
            "active is 3 blocks, but must be from 1 to 2",
            finetune(|c| c.lisa_blocks = Some(3)),
        ),
        (
            "a period of LISA of 0 steps",
            "period is 0 steps, but must be at least 1 step",
            finetune(|c| (c.lisa_blocks, c.lisa_period) = (Some(1), 0)),
        ),
        (
            "a tokenizer of another model",
            "the model's vocabulary is ",
            finetune(|c| {
                (c.model, c.tokenizer) = (Some(other), Some(stories().join("tokenizer.json")))
            }),
        ),
        (
            "samples longer than the model's positions",
            "max-length is 513, but must be at most 512",
            finetune(|c| (c.model, c.max_length) = (Some(stories()), 513)),
        ),
        (
            "a folder that holds a run",
            "already holds a run or a model",
            full,
        ),
        (
            "nothing to evaluate",
            "files is 0, but must be at least 1",
            measure(|c| c.files.clear()),
        ),
        (
            "an evaluation in batches of 0",
            "batch is 0, but must be at least 1",
            measure(|c| c.batch = 0),
        ),
        (
            "answers of 0 tokens",
            "answer-tokens is 0, but must be at least 1",
            measure(|c| c.answer_tokens = 0),
        ),
        (
            "a file that is not there",
            "No such file",
            measure(|c| c.files = vec!["no/such.jsonl".into()]),
        ),
        (
            "a prompt of no token",
            "prompt is 0, but must be from 1 to 512 tokens",
            prompt(&[]),
        ),
        (
            "a prompt with a token outside the vocabulary",
            "a token of the prompt is 512, but must be below 512",
            prompt(&[512]),
        ),
        (
            "a vocabulary without room for the bytes",
            "vocabulary is 256, but must be at least 257",
            message(Tokenizer::train([""].into_iter(), 256)),
        ),
    ]
}
