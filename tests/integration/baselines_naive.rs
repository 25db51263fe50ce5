//! Each baseline equals its definition, written out: samples one at a time, whole graphs, AdamW and projections as loops over
//! numbers in double precision.

use std::fs;
use std::path::Path;

use burn::module::{Module, ModuleVisitor, Param};
use burn::optim::GradientsParams;
use burn::tensor::activation::log_softmax;
use burn::tensor::{Int, Tensor, TensorData};
use scalebio::baselines::{
    AlignmentConfig, Baseline, GroupDroConfig, InfluenceConfig, Projection, ReferenceConfig,
    ValidationGroups,
};
use scalebio::data::Sample;
use scalebio::models::CausalLm;
use scalebio::train::{BaselineResult, Experiment, ReweightConfig};
use serde_json::Value;
use tempfile::TempDir;

use crate::evaluate::stories;
use crate::problems::{flat_gradient, flatten, with_values};
use crate::zoo::largest_difference;

const SOURCES: [&str; 4] = ["apes", "bees", "cats", "dogs"];
const STEPS: usize = 4;
const RATE: f64 = 2e-3;

/// Four sources of five records, each one sample, and five records of validation that resemble the first source.
fn twenty() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let texts = |name: &str, tail: &str| -> String {
        let line = |i: usize| {
            let more = " and so on".repeat(i % 3);
            format!("{{\"text\": \"The {name} of house {i} {tail}{more}.\"}}\n")
        };
        (0..5).map(line).collect()
    };
    let tails = [
        "went to play in the park",
        "qzx jkv wwp",
        "said hello to Lily",
        "= f(x) + 17;",
    ];
    for (name, tail) in SOURCES.iter().zip(tails) {
        let path = folder.path().join(format!("train_{name}.jsonl"));
        fs::write(path, texts(name, tail)).unwrap();
    }
    let validation = texts("girl", "went to play with a ball");
    fs::write(folder.path().join("val.jsonl"), validation).unwrap();
    folder
}

/// Settings whose draws are all samples there are, so that no seed decides what a step sees.
fn experiment(folder: &TempDir) -> Experiment {
    Experiment::open(ReweightConfig {
        model: Some(stories()),
        steps: STEPS,
        batch: 20,
        micro_batch: Some(7),
        alpha: 1.0,
        lr_lower: RATE,
        ..ReweightConfig::new(folder.path())
    })
    .unwrap()
}

/// A model whose numbers are kept and moved in double precision by AdamW.
struct Naive {
    model: CausalLm,
    numbers: Vec<f64>,
    first: Vec<f64>,
    second: Vec<f64>,
    time: i32,
}

impl Naive {
    fn new(experiment: &Experiment) -> Self {
        let model = experiment.base_model().unwrap();
        let numbers = flatten(&model);
        Self {
            first: vec![0.0; numbers.len()],
            second: vec![0.0; numbers.len()],
            numbers,
            model,
            time: 0,
        }
    }

    /// The loss of each label token of a sample.
    fn token_losses(&self, sample: &Sample) -> Tensor<1> {
        let device = self.model.device();
        let length = sample.ids.len();
        let ids: Vec<i64> = sample.ids.iter().map(|&id| i64::from(id)).collect();
        let row = |ids: &[i64]| {
            Tensor::<2, Int>::from_data(TensorData::new(ids.to_vec(), [1, ids.len()]), &device)
        };
        let logits = self.model.logits(row(&ids), row(&vec![1; length]));
        let [_, _, vocabulary] = logits.dims();
        let logits = logits.reshape([length, vocabulary]);
        let likely = log_softmax(logits, 1).narrow(0, 0, length - 1);
        let targets = row(&ids[1..]).reshape([length - 1, 1]);
        likely.gather(1, targets).neg().reshape([length - 1])
    }

    fn loss(&self, sample: &Sample) -> Tensor<1> {
        self.token_losses(sample).mean()
    }

    fn gradient(&self, loss: &Tensor<1>) -> Vec<f64> {
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        flat_gradient(&self.model, &gradients)
    }

    /// The mean of the gradients of single samples.
    fn mean_gradient(&self, samples: &[&Sample]) -> Vec<f64> {
        let mut mean = vec![0.0; self.numbers.len()];
        for sample in samples {
            let gradient = self.gradient(&self.loss(sample));
            for (mean, g) in mean.iter_mut().zip(gradient) {
                *mean += g / samples.len() as f64;
            }
        }
        mean
    }

    /// Moments and direction of an AdamW step along a gradient.
    fn adam(&self, gradient: &[f64]) -> [Vec<f64>; 3] {
        let time = self.time + 1;
        let mut all = [vec![], vec![], vec![]];
        for (i, g) in gradient.iter().enumerate() {
            let m = 0.9 * self.first[i] + 0.1 * g;
            let s = 0.999 * self.second[i] + 0.001 * g * g;
            let root = (s / (1.0 - 0.999_f64.powi(time))).sqrt() + 1e-8;
            all[0].push(m);
            all[1].push(s);
            all[2].push(m / (1.0 - 0.9_f64.powi(time)) / root);
        }
        all
    }

    /// A step of step `index` of a run on a cosine, with gradients clipped at norm 1.
    fn step(&mut self, index: usize, steps: usize, mut gradient: Vec<f64>) {
        let norm = gradient.iter().map(|g| g * g).sum::<f64>().sqrt();
        if norm > 1.0 {
            gradient.iter_mut().for_each(|g| *g /= norm);
        }
        let [first, second, direction] = self.adam(&gradient);
        (self.first, self.second) = (first, second);
        self.time += 1;
        for (number, d) in self.numbers.iter_mut().zip(direction) {
            *number -= rate(index, steps) * d;
        }
        self.model = with_values(&self.model, &self.numbers);
    }

    /// Steps on the mean of all samples.
    fn train(&mut self, samples: &[&Sample], range: std::ops::Range<usize>, steps: usize) {
        for index in range {
            let gradient = self.mean_gradient(samples);
            self.step(index, steps, gradient);
        }
    }
}

fn rate(index: usize, steps: usize) -> f64 {
    RATE * 0.5 * (1.0 + (std::f64::consts::PI * index as f64 / steps as f64).cos())
}

fn cosine(a: &[f64], b: &[f64]) -> f64 {
    let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    inner(a, b) / (inner(a, a) * inner(b, b)).sqrt()
}

fn samples(experiment: &Experiment) -> Vec<&Sample> {
    let sources = experiment.sources().iter();
    let samples: Vec<&Sample> = sources
        .flat_map(|source| source.in_memory().unwrap())
        .collect();
    assert_eq!(samples.len(), 20);
    samples
}

fn run(experiment: &Experiment, baseline: &Baseline, out: &Path) -> BaselineResult {
    experiment.baseline(baseline, out).unwrap()
}

fn weights(result: &BaselineResult) -> Vec<f64> {
    result.weights.sources.iter().map(|s| s.weight).collect()
}

fn lines(path: &Path) -> Vec<Value> {
    let text = fs::read_to_string(path).unwrap();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// The field of the lines of a stage.
fn column(path: &Path, stage: &str, field: &str) -> Vec<f64> {
    let lines = lines(&path.join("metrics.jsonl"));
    let lines = lines.iter().filter(|line| line["stage"] == stage);
    lines.map(|line| line[field].as_f64().unwrap()).collect()
}

/// The dense matrix of a projection times a vector.
fn project(projection: &Projection, model: &CausalLm, vector: &[f64]) -> Vec<f64> {
    struct Sizes(Vec<usize>);
    impl ModuleVisitor for Sizes {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.0.push(param.val().shape().num_elements());
        }
    }
    let mut sizes = Sizes(Vec::new());
    model.visit(&mut sizes);
    let sizes = (0_u64..).zip(sizes.0);
    let columns: Vec<(usize, f64)> = sizes
        .flat_map(|(parameter, size)| (0..size as u64).map(move |e| (parameter, e)))
        .map(|(parameter, element)| projection.entry(parameter, element))
        .collect();
    assert_eq!(columns.len(), vector.len());
    let entry = |row: usize| {
        let terms = columns.iter().zip(vector);
        terms.map(move |((at, sign), v)| if *at == row { sign * v } else { 0.0 })
    };
    (0..projection.dimension())
        .map(|row| entry(row).sum())
        .collect()
}

/// LESS: the score of every record, and the records selected, for both kinds of validation groups.
#[test]
fn less_is_the_cosine_of_adam_directions_with_validation_gradients() {
    let folder = twenty();
    let experiment = experiment(&folder);
    let samples = samples(&experiment);
    let validation: Vec<&Sample> = experiment
        .validation()
        .in_memory()
        .unwrap()
        .iter()
        .collect();
    let projection = Projection::new(0, 48);
    let (mut naive, mut rates) = (Naive::new(&experiment), 0.0);
    // scores[kind of groups][sample][group]
    let mut scores = [vec![vec![0.0]; 20], vec![vec![0.0; 5]; 20]];
    for range in [0..2, 2..4] {
        naive.train(&samples, range.clone(), STEPS);
        let mean = range.map(|index| rate(index, STEPS)).sum::<f64>() / 2.0;
        rates += mean;
        let down = |vector: &[f64]| project(&projection, &naive.model, vector);
        let whole = vec![down(&naive.mean_gradient(&validation))];
        let each = validation.iter().map(|s| down(&naive.mean_gradient(&[s])));
        let groups = [whole, each.collect()];
        for (i, sample) in samples.iter().enumerate() {
            let gradient = naive.gradient(&naive.loss(sample));
            let [_, _, direction] = naive.adam(&gradient);
            let direction = down(&direction);
            for (scores, groups) in scores.iter_mut().zip(&groups) {
                for (score, group) in scores[i].iter_mut().zip(groups) {
                    *score += mean * cosine(&direction, group);
                }
            }
        }
    }
    let kinds = [ValidationGroups::Whole, ValidationGroups::Samples];
    for (groups, scores) in kinds.into_iter().zip(scores) {
        let best = |scores: &Vec<f64>| scores.iter().copied().fold(f64::MIN, f64::max) / rates;
        let expected: Vec<f64> = scores.iter().map(best).collect();
        let baseline = Baseline::Influence(InfluenceConfig {
            share: 0.3,
            checkpoints: 2,
            warmup: Some(4),
            dimension: 48,
            groups,
        });
        let out = folder.path().join(format!("{groups:?}"));
        let result = run(&experiment, &baseline, &out);
        let given = lines(&out.join("scores.jsonl"));
        let given: Vec<f64> = given.iter().map(|l| l["score"].as_f64().unwrap()).collect();
        let difference = largest_difference(&given, &expected);
        assert!(difference < 1e-5, "{groups:?}: {difference}");

        let mut order: Vec<usize> = (0..20).collect();
        order.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
        let mut chosen = order[..6].to_vec();
        chosen.sort_unstable();
        let files = SOURCES.map(|name| {
            let path = folder.path().join(format!("train_{name}.jsonl"));
            fs::read_to_string(path).unwrap()
        });
        let all: Vec<&str> = files.iter().flat_map(|text| text.lines()).collect();
        let mix: String = chosen.iter().map(|&i| format!("{}\n", all[i])).collect();
        assert_eq!(fs::read_to_string(out.join("mix.jsonl")).unwrap(), mix);
        let count = |source: usize| chosen.iter().filter(|&&i| i / 5 == source).count() as f64;
        let shares: Vec<f64> = (0..4).map(|source| count(source) / 6.0).collect();
        assert!(largest_difference(&weights(&result), &shares) < 1e-12);
    }
}

/// RHO-LOSS: the excess of the samples kept in every step, the loss that they are trained on, and how often each source is kept.
#[test]
fn rho_loss_keeps_the_samples_furthest_above_the_reference() {
    let folder = twenty();
    let config = ReweightConfig {
        batch: 5,
        ..experiment(&folder).config().clone()
    };
    let experiment = Experiment::open(config).unwrap();
    let samples = samples(&experiment);
    let validation: Vec<&Sample> = experiment
        .validation()
        .in_memory()
        .unwrap()
        .iter()
        .collect();
    let mut reference = Naive::new(&experiment);
    reference.train(&validation, 0..3, 3);
    let value = |loss: Tensor<1>| loss.into_scalar::<f64>();
    let known: Vec<f64> = samples.iter().map(|s| value(reference.loss(s))).collect();

    let mut model = Naive::new(&experiment);
    let (mut excesses, mut losses, mut counts) = (vec![], vec![], [0.0; 4]);
    for index in 0..STEPS {
        let loss: Vec<f64> = samples.iter().map(|s| value(model.loss(s))).collect();
        let mut order: Vec<usize> = (0..20).collect();
        order.sort_by(|&a, &b| (loss[b] - known[b]).total_cmp(&(loss[a] - known[a])));
        let kept = &order[..5];
        excesses.push(kept.iter().map(|&i| loss[i] - known[i]).sum::<f64>() / 5.0);
        losses.push(kept.iter().map(|&i| loss[i]).sum::<f64>() / 5.0);
        kept.iter().for_each(|i| counts[i / 5] += 1.0 / 20.0);
        let kept: Vec<&Sample> = kept.iter().map(|&i| samples[i]).collect();
        model.train(&kept, index..index + 1, STEPS);
    }

    let baseline = Baseline::Reference(ReferenceConfig {
        share: 0.25, // 5 of 20 candidates
        reference_steps: Some(3),
    });
    let out = folder.path().join("out");
    let result = run(&experiment, &baseline, &out);
    let given = column(&out, "training", "kept_excess");
    assert!(largest_difference(&given, &excesses) < 1e-5);
    assert!(largest_difference(&column(&out, "training", "loss"), &losses) < 1e-5);
    assert!(largest_difference(&weights(&result), &counts) < 1e-12);
}

/// Alignment: the cosine of each source's mean gradient with that of the validation set, and its softmax.
#[test]
fn alignment_is_the_softmax_of_cosines_of_mean_gradients() {
    let folder = twenty();
    let experiment = experiment(&folder);
    let samples = samples(&experiment);
    let validation: Vec<&Sample> = experiment
        .validation()
        .in_memory()
        .unwrap()
        .iter()
        .collect();
    let mut naive = Naive::new(&experiment);
    naive.train(&samples, 0..2, STEPS);
    let target = naive.mean_gradient(&validation);
    let gradients = samples.chunks(5).map(|own| naive.mean_gradient(own));
    let expected: Vec<f64> = gradients.map(|own| cosine(&own, &target)).collect();

    let baseline = Baseline::Alignment(AlignmentConfig {
        warmup: None, // half of four steps
        temperature: 0.2,
    });
    let out = folder.path().join("out");
    let result = run(&experiment, &baseline, &out);
    let given = column(&out, "alignment", "cosine");
    assert!(
        largest_difference(&given, &expected) < 1e-5,
        "{given:?} {expected:?}"
    );
    let e: Vec<f64> = expected.iter().map(|cosine| (cosine / 0.2).exp()).collect();
    let p: Vec<f64> = e.iter().map(|x| x / e.iter().sum::<f64>()).collect();
    assert!(largest_difference(&weights(&result), &p) < 1e-5);
}

/// DoReMi: the weights of every step and their mean.
#[test]
fn doremi_is_group_dro_on_clipped_excess_losses_of_tokens() {
    let folder = twenty();
    let experiment = experiment(&folder);
    let samples = samples(&experiment);
    let mut reference = Naive::new(&experiment);
    reference.train(&samples, 0..3, 3);
    let values = |losses: Tensor<1>| -> Vec<f64> { losses.into_data().iter::<f64>().collect() };
    let tokens: Vec<f64> = samples
        .chunks(5)
        .map(|own| own.iter().map(|sample| sample.ids.len() as f64 - 1.0).sum())
        .collect();
    let known: Vec<Vec<f64>> = samples
        .iter()
        .map(|sample| values(reference.token_losses(sample)))
        .collect();

    let (rate, smoothing) = (0.7, 0.1);
    let mut proxy = Naive::new(&experiment);
    let (mut p, mut mean, mut of_steps) = ([0.25; 4], [0.0; 4], vec![]);
    for index in 0..STEPS {
        let mut excess = [0.0; 4];
        for (i, sample) in samples.iter().enumerate() {
            let losses = values(proxy.token_losses(sample));
            for (loss, known) in losses.iter().zip(&known[i]) {
                excess[i / 5] += (loss - known).max(0.0) / tokens[i / 5];
            }
        }
        for (p, excess) in p.iter_mut().zip(excess) {
            *p *= (rate * excess).exp();
        }
        let total: f64 = p.iter().sum();
        p.iter_mut()
            .for_each(|p| *p = (1.0 - smoothing) * *p / total + smoothing / 4.0);
        mean.iter_mut().zip(p).for_each(|(m, p)| *m += p / 4.0);
        of_steps.extend(p);

        let mut gradient = vec![0.0; proxy.numbers.len()];
        for (i, sample) in samples.iter().enumerate() {
            let own = proxy.gradient(&proxy.token_losses(sample).sum());
            let factor = p[i / 5] / tokens[i / 5];
            gradient
                .iter_mut()
                .zip(own)
                .for_each(|(g, own)| *g += factor * own);
        }
        proxy.step(index, STEPS, gradient);
    }

    let baseline = Baseline::GroupDro(GroupDroConfig {
        rate,
        smoothing,
        reference_steps: Some(3),
    });
    let out = folder.path().join("out");
    let result = run(&experiment, &baseline, &out);
    let lines = lines(&out.join("metrics.jsonl"));
    let given: Vec<f64> = lines
        .iter()
        .filter(|line| line["stage"] == "proxy")
        .flat_map(|line| SOURCES.map(|name| line["weights"][name].as_f64().unwrap()))
        .collect();
    assert!(
        of_steps.iter().any(|p| (p - 0.25).abs() > 0.01),
        "{of_steps:?}"
    );
    assert!(largest_difference(&given, &of_steps) < 1e-5);
    assert!(largest_difference(&weights(&result), &mean) < 1e-5);
}
