//! LISA on language models: the numbers of the paper, and what its promise means for GPT-2.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup};
use burn::tensor::{Device, Tensor};
use scalebio::data::{Sample, Source};
use scalebio::models::{CausalLm, Differentiation, Gpt2Config};
use scalebio::reweight::{self, Draws, SourceWeights, TokenSources, Validation, WeightedSources};
use scalebio::{Bilevel, LayerSampler, Lisa, Run, ScaleBio, Step, Update};

const BLOCKS: usize = 5;

/// Every parameter with its path.
#[derive(Default)]
struct Walk {
    path: Vec<String>,
    sizes: Vec<(String, usize)>,
    bits: Vec<(String, Vec<u32>)>,
    read: bool,
}

impl ModuleVisitor for Walk {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let path = self.path.join(".");
        self.sizes
            .push((path.clone(), param.lazy_shape().num_elements()));
        if self.read {
            let values = param.val().into_data();
            self.bits
                .push((path, values.iter::<f32>().map(f32::to_bits).collect()));
        }
    }
}

pub fn bits(model: &CausalLm) -> Vec<(String, Vec<u32>)> {
    let mut walk = Walk {
        read: true,
        ..Walk::default()
    };
    model.visit(&mut walk);
    walk.bits
}

/// Numbers of the parameters in a group.
pub fn trainable(model: &CausalLm, group: &ParamGroup) -> usize {
    let mut walk = Walk::default();
    model.visit(&mut walk);
    let id = burn::module::ParamId::new();
    walk.sizes
        .iter()
        .filter(|(path, _)| group.matches(&id, Some(path)))
        .map(|(_, size)| size)
        .sum()
}

/// Block of a parameter at `path`; `None` for embeddings and final norm.
fn block_of(path: &str) -> Option<usize> {
    path.strip_prefix("network.Gpt2.blocks.")?
        .split('.')
        .next()?
        .parse()
        .ok()
}

fn small() -> CausalLm {
    small_on(&Device::flex().autodiff())
}

/// A run of a small GPT-2 on a device.
#[cfg(feature = "wgpu")]
pub fn start_small(device: &Device) -> LanguageRun {
    start(adamw(), small_on(device))
}

/// A run of a small GPT-2 under LISA, with its blocks on these devices.
pub fn start_spread(devices: &[Device]) -> LanguageRun {
    let (method, model) = spread(devices);
    start(method, model)
}

/// The run of [`start_spread`] from a checkpoint.
#[cfg(feature = "remote")]
pub fn resume_spread(devices: &[Device], folder: &std::path::Path) -> LanguageRun {
    let (method, model) = spread(devices);
    let (problem, weights) = problem(&model.device());
    method.resume(folder, problem, weights, model).unwrap()
}

fn spread(devices: &[Device]) -> (ScaleBio, CausalLm) {
    let model = small_on(&devices[0]).spread(devices).unwrap();
    let lisa = Lisa::over(&model, &model.blocks_path()).unwrap().period(3);
    (adamw().layers(lisa), model)
}

/// A run of a small GPT-2 under LISA, with `w` on one device and `u` on another.
#[cfg(any(feature = "remote", feature = "wgpu"))]
pub fn start_apart(of_w: &Device, of_u: &Device) -> LanguageRun {
    let model = small_on(of_w);
    let lisa = Lisa::over(&model, &model.blocks_path()).unwrap().period(3);
    let place = |u: CausalLm| u.spread(std::slice::from_ref(of_u));
    let (problem, weights) = problem(of_w);
    let method = adamw().layers(lisa);
    let run = method.start_apart(problem, weights, model, place);
    run.unwrap()
}

fn small_on(device: &Device) -> CausalLm {
    Gpt2Config::new(20, 8, 8, BLOCKS, 2)
        .init(3, device)
        .unwrap()
        .into()
}

pub fn source(name: &str, step: u32) -> Source {
    let sample = |start: u32| Sample {
        ids: (0..8).map(|i| (start + i * step) % 20).collect(),
        learned: vec![true; 8],
    };
    Source {
        name: name.to_owned(),
        path: name.into(),
        samples: (0..16).map(sample).collect::<Vec<_>>().into(),
        records: 16,
        skipped: 0,
    }
}

type Problem = Bilevel<Validation<TokenSources>, WeightedSources<TokenSources>>;
pub type LanguageRun =
    Run<Validation<TokenSources>, WeightedSources<TokenSources>, SourceWeights, CausalLm>;

/// A problem of two sources, and uniform weights.
pub fn problem(device: &Device) -> (Problem, SourceWeights) {
    let training = TokenSources::new(vec![source("ones", 1), source("threes", 3)]);
    let validation = TokenSources::new(vec![source("val", 1)]);
    let problem = reweight::problem(Draws::new(training, 4), Draws::new(validation, 4).seed(1));
    let weights = SourceWeights::uniform(["ones", "threes"], device).unwrap();
    (problem.unwrap(), weights)
}

/// A run of [`problem`] on the device of the model's embedding.
pub fn start(method: ScaleBio, model: CausalLm) -> LanguageRun {
    let (problem, weights) = problem(&model.device());
    method.start(problem, weights, model).unwrap()
}

fn adamw() -> ScaleBio {
    ScaleBio::new(Update::adamw(1e-2), Update::adamw(1e-3))
}

fn take(run: &mut LanguageRun, steps: usize) {
    run.by_ref()
        .take(steps)
        .for_each(|step| drop(step.unwrap()));
}

#[test]
fn lisa_trains_53_561_088_of_124_439_808_parameters_of_gpt2() {
    let model = CausalLm::from(Gpt2Config::default().init(0, &Device::flex()).unwrap());
    assert_eq!(model.num_params(), 124_439_808);
    let mut lisa = Lisa::over(&model, &model.blocks_path()).unwrap().active(2);
    let active = lisa.sample(0).unwrap();
    assert_eq!(trainable(&model, &active.lower), 53_561_088);
    assert_eq!(trainable(&model, &active.auxiliary), 53_561_088);
}

#[test]
fn blocks_outside_the_active_set_stand_still_over_a_period_and_every_block_gets_its_turn() {
    let (active, period) = (2, 3);
    let model = small();
    let lisa = Lisa::over(&model, &model.blocks_path())
        .unwrap()
        .active(active)
        .period(period)
        .seed(5);
    let mut run = start(adamw().layers(lisa), model);
    let mut drawn = [[false; BLOCKS]; 2];
    for _ in 0..25 {
        let before = [bits(run.lower()), bits(run.auxiliary())];
        // Every step, so that a block that moved and came back would be seen too.
        let mut moved = [[false; BLOCKS]; 2];
        for _ in 0..period {
            take(&mut run, 1);
            let now = [bits(run.lower()), bits(run.auxiliary())];
            for variable in 0..2 {
                for ((path, a), (_, b)) in before[variable].iter().zip(&now[variable]) {
                    if let Some(block) = block_of(path) {
                        moved[variable][block] |= a != b;
                    }
                }
            }
        }
        for variable in 0..2 {
            assert_eq!(
                moved[variable].iter().filter(|moved| **moved).count(),
                active
            );
            for (drawn, moved) in drawn[variable].iter_mut().zip(moved[variable]) {
                *drawn |= moved;
            }
        }
    }
    assert_eq!(drawn, [[true; BLOCKS]; 2]);
}

#[test]
fn moments_of_gpt2_stay_those_of_the_active_blocks_over_100_redraws() {
    let model = small();
    let lisa = Lisa::over(&model, &model.blocks_path())
        .unwrap()
        .active(2)
        .period(1);
    let mut counting = lisa.clone();
    let active = trainable(&model, &counting.sample(0).unwrap().lower);
    let mut run = start(adamw().layers(lisa), model);
    for _ in 0..100 {
        take(&mut run, 1);
        // Two float32 moments a trainable parameter of w and of u, and of the two logits.
        assert_eq!(run.moment_bytes(), 2 * 4 * (2 * active + 2));
    }
}

#[test]
fn gpt2_with_all_blocks_active_trains_as_without_lisa_bit_for_bit() {
    let model = small();
    let lisa = Lisa::over(&model, &model.blocks_path())
        .unwrap()
        .active(BLOCKS)
        .period(2);
    let mut with = start(adamw().layers(lisa), model);
    let mut without = start(adamw(), small());
    take(&mut with, 7);
    take(&mut without, 7);
    assert_eq!(bits(with.lower()), bits(without.lower()));
    assert_eq!(bits(with.auxiliary()), bits(without.auxiliary()));
    assert_eq!(with.upper().logit_values(), without.upper().logit_values());
}

/// Steps of LISA with gradients block by block are those with one tape, and so are those in parallel: exactly, since the
/// two differ in nothing but the thread.
#[test]
fn lisa_takes_the_same_steps_block_by_block_and_in_parallel() {
    let run = |how, parallel: bool| {
        let model = small().with_differentiation(how);
        let lisa = Lisa::over(&model, &model.blocks_path()).unwrap().period(3);
        // A large epsilon, with which Adam does not make a step of rounding noise.
        let update = |rate| Update::adamw(rate).epsilon(1e-2);
        let method = ScaleBio::new(update(1e-2), update(1e-2)).layers(lisa);
        let run = start(method.clip(1.0), model);
        let mut run = if parallel { run.in_parallel() } else { run };
        let steps: Vec<_> = run.by_ref().take(10).map(Result::unwrap).collect();
        (steps, run.finish())
    };
    let (expected, _) = run(Differentiation::Plain, false);
    let (steps, end) = run(Differentiation::Blockwise, false);
    for (step, expected) in steps.iter().zip(&expected) {
        let numbers = |step: &Step| {
            let norms = step.gradient_norms();
            let mut numbers = step.lower_parts().to_vec();
            numbers.extend(step.auxiliary_parts());
            numbers.extend([step.upper_loss(), norms.lower, norms.auxiliary]);
            numbers
        };
        for (a, b) in numbers(step).into_iter().zip(numbers(expected)) {
            assert!((a - b).abs() <= 1e-5 * b.abs(), "{step}: {a} against {b}");
        }
    }
    for _ in 0..3 {
        let (steps_again, end_again) = run(Differentiation::Blockwise, true);
        assert_eq!(format!("{steps_again:?}"), format!("{steps:?}"));
        assert_eq!(bits(&end_again.lower), bits(&end.lower));
        assert_eq!(bits(&end_again.auxiliary), bits(&end.auxiliary));
    }
}
