//! Gradients block by block are those of one tape.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Tensor};
use scalebio::data::{Sample, TokenBatch};
use scalebio::models::{CausalLm, Differentiation, Gpt2Config};
use scalebio::reweight::SampleLosses;

/// Largest relative error of a gradient: `max |a - b| / max |b|` of a tensor.
const TOLERANCE: f64 = 1e-5;

/// Freezes parameters by block; `None` is what lies outside the blocks.
struct Freeze<'a> {
    blocks: String,
    path: Vec<String>,
    active: &'a dyn Fn(Option<usize>, &str) -> bool,
}

impl ModuleMapper for Freeze<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        let path = self.path.join(".");
        let block = path
            .strip_prefix(&format!("{}.", self.blocks))
            .map(|rest| rest.split('.').next().unwrap().parse().unwrap());
        let active = (self.active)(block, &path);
        param.set_require_grad(active)
    }
}

pub fn with_active(model: &CausalLm, active: &dyn Fn(Option<usize>, &str) -> bool) -> CausalLm {
    model.clone().map(&mut Freeze {
        blocks: model.blocks_path(),
        path: Vec::new(),
        active,
    })
}

/// Every parameter's gradient, with its path.
struct Read<'a> {
    path: Vec<String>,
    gradients: &'a GradientsParams,
    found: Vec<(String, Option<Vec<f64>>)>,
}

impl ModuleVisitor for Read<'_> {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let gradient = self.gradients.get::<D>(param.id);
        let values = gradient.map(|g| g.into_data().iter::<f64>().collect());
        self.found.push((self.path.join("."), values));
    }
}

pub fn read(model: &CausalLm, gradients: &GradientsParams) -> Vec<(String, Option<Vec<f64>>)> {
    let mut read = Read {
        path: Vec::new(),
        gradients,
        found: Vec::new(),
    };
    model.visit(&mut read);
    read.found
}

/// Three samples of different lengths, with prompts and padding; the last has no label.
pub fn batch(vocabulary: usize) -> TokenBatch {
    let sample = |length: usize, prompt: usize, start: usize| Sample {
        ids: (0..length)
            .map(|i| ((start + i * (i + 3)) % vocabulary) as u32)
            .collect(),
        learned: (0..length).map(|i| i >= prompt).collect(),
    };
    let samples = [sample(17, 4, 5), sample(9, 0, 2), sample(12, 12, 7)];
    TokenBatch::new(&samples.iter().collect::<Vec<_>>())
}

pub const FACTORS: [f64; 3] = [0.7, -1.9, 3.0];

/// Compares the two ways for one choice of active parameters.
fn check(model: &CausalLm, batch: &TokenBatch, what: &str) {
    check_factors(model, batch, &FACTORS, what);
}

fn check_factors(model: &CausalLm, batch: &TokenBatch, factors: &[f64], what: &str) {
    let by = |how| {
        let model = model.clone().with_differentiation(how);
        let (losses, gradients) = model.differentiate(batch, factors).unwrap();
        (losses, read(&model, &gradients))
    };
    let expected = by(Differentiation::Plain);
    for how in [Differentiation::Blockwise, Differentiation::Balanced] {
        compare(by(how), &expected, &format!("{what}, {how:?}"));
    }
}

pub type Found = (Vec<f64>, Vec<(String, Option<Vec<f64>>)>);

pub fn compare((losses, gradients): Found, (expected_losses, expected): &Found, what: &str) {
    for (a, b) in losses.iter().zip(expected_losses) {
        assert!((a - b).abs() <= TOLERANCE * b.abs(), "{what}: {a} {b}");
    }
    for ((path, a), (_, b)) in gradients.iter().zip(expected) {
        match (a, b) {
            (Some(a), Some(b)) => {
                let errors = a.iter().zip(b).map(|(a, b)| (a - b).abs());
                let error = errors.fold(0.0, f64::max);
                let scale = b.iter().fold(0.0, |m: f64, b| m.max(b.abs()));
                assert!(
                    error <= TOLERANCE * scale,
                    "{what}, {path}: {error} of {scale}"
                );
            }
            (None, None) => {}
            _ => panic!(
                "{what}, {path}: {:?} against {:?}",
                a.is_some(),
                b.is_some()
            ),
        }
    }
}

pub fn folders(set: &str) -> Vec<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(set);
    let mut folders: Vec<_> = fs::read_dir(path)
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    folders.sort();
    folders
}

pub fn blocks_of(model: &CausalLm) -> usize {
    scalebio::Lisa::over(model, &model.blocks_path())
        .unwrap()
        .blocks()
}

/// The promise: for each of the seven checkpoints and every set of active blocks, what lies outside the blocks frozen or
/// not, losses and gradients are those of one tape.
#[test]
fn every_choice_of_active_blocks_has_the_gradients_of_one_tape() {
    let device = Device::flex().autodiff();
    let folders = folders("hf");
    assert_eq!(folders.len(), 7);
    for folder in folders {
        let model = CausalLm::from_pretrained(&folder, &device).unwrap();
        let batch = batch(model.vocabulary_size());
        for set in 0..1_usize << blocks_of(&model) {
            for others in [false, true] {
                let model = with_active(&model, &|block, _| {
                    block.map_or(others, |block| set >> block & 1 == 1)
                });
                let what = format!("{}, blocks {set:b}, others {others}", folder.display());
                check(&model, &batch, &what);
            }
        }
    }
}

/// The pieces outside the blocks (embeddings, final norm, head) may be frozen one by one, and so may parts of a block.
#[test]
fn parameters_outside_the_blocks_may_be_frozen_one_by_one() {
    let device = Device::flex().autodiff();
    let all = folders("hf").into_iter().chain(folders("hf_variants"));
    for folder in all {
        let model = CausalLm::from_pretrained(&folder, &device).unwrap();
        let batch = batch(model.vocabulary_size());
        let last = blocks_of(&model) - 1;
        let outside = read(&model, &GradientsParams::new());
        let outside: Vec<_> = outside
            .into_iter()
            .map(|(path, _)| path)
            .filter(|path| !path.starts_with(&model.blocks_path()))
            .collect();
        for only in &outside {
            for blocks in [false, true] {
                let model = with_active(&model, &|block, path| {
                    path == only || blocks && block == Some(last) && path.ends_with("weight")
                });
                let what = format!("{}, {only}, block {blocks}", folder.display());
                check(&model, &batch, &what);
            }
        }
    }
}

/// A vocabulary so large that head and loss go in several chunks, and its weight's gradient in several pieces.
#[test]
fn chunks_of_the_head_add_up() {
    let device = Device::flex().autodiff();
    let vocabulary = 60_000;
    let model = Gpt2Config::new(vocabulary, 128, 128, 1, 2).init(0, &device);
    let model = CausalLm::from(model.unwrap());
    let sample = |start: usize| Sample {
        ids: (0..120)
            .map(|i| ((start + i * 331) % vocabulary) as u32)
            .collect(),
        learned: vec![true; 120],
    };
    let samples = [sample(5), sample(9), sample(31)];
    let batch = TokenBatch::new(&samples.iter().collect::<Vec<_>>());
    check(&model, &batch, "all");
    let frozen_head = with_active(&model, &|block, _| block.is_some());
    check(&frozen_head, &batch, "head frozen");
}

/// A batch so large that it goes through the blocks in two parts, of eight and of seven samples.
#[test]
fn parts_of_a_batch_add_up() {
    let device = Device::flex().autodiff();
    let model = Gpt2Config::new(50, 128, 128, 2, 2).init(0, &device);
    let model = CausalLm::from(model.unwrap());
    let sample = |index: usize| Sample {
        ids: (0..128 - 3 * index)
            .map(|i| ((index + i * (i + 3)) % 50) as u32)
            .collect(),
        learned: (0..128 - 3 * index).map(|i| i >= index).collect(),
    };
    let samples: Vec<_> = (0..15).map(sample).collect();
    let batch = TokenBatch::new(&samples.iter().collect::<Vec<_>>());
    let factors: Vec<f64> = (0..15).map(|i| 1.0 - 0.3 * f64::from(i)).collect();
    check_factors(&model, &batch, &factors, "all");
    let first = with_active(&model, &|block, _| block == Some(0));
    check_factors(&first, &batch, &factors, "block 0");
}

/// A batch without labels has losses of 0 and no gradient, where something is frozen; else that is an error, as with one
/// tape.
#[test]
fn a_batch_without_labels_is_told_from_a_gradient_of_zero() {
    let device = Device::flex().autodiff();
    let model = CausalLm::from(Gpt2Config::new(20, 16, 8, 2, 2).init(0, &device).unwrap());
    let sample = Sample {
        ids: vec![1, 2, 3],
        learned: vec![false; 3],
    };
    let batch = TokenBatch::new(&[&sample]);
    for how in [
        Differentiation::Plain,
        Differentiation::Blockwise,
        Differentiation::Balanced,
    ] {
        let model = model.clone().with_differentiation(how);
        let error = model.differentiate(&batch, &[1.0]).unwrap_err();
        assert!(
            matches!(error, scalebio::Error::NotDifferentiable),
            "{how:?}"
        );
        let model = with_active(&model, &|block, _| block == Some(1));
        let (losses, gradients) = model.differentiate(&batch, &[1.0]).unwrap();
        assert_eq!((losses, gradients.len()), (vec![0.0], 0), "{how:?}");
    }
}

/// Another number of factors than of samples is an error that says so, not a panic.
#[test]
fn a_wrong_number_of_factors_is_an_error() {
    let device = Device::flex().autodiff();
    let model = CausalLm::from(Gpt2Config::new(20, 32, 8, 2, 2).init(0, &device).unwrap());
    for how in [
        Differentiation::Plain,
        Differentiation::Blockwise,
        Differentiation::Balanced,
    ] {
        let model = model.clone().with_differentiation(how);
        let error = model.differentiate(&batch(20), &[1.0]).unwrap_err();
        assert!(error.to_string().contains("3 numbers"), "{error}");
    }
}
