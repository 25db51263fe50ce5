//! Layer sampling: LISA trains the blocks it drew and what lies outside the list, and nothing else;
//! blocks are found by their exact path and drawn uniformly.

use std::collections::{BTreeMap, BTreeSet};

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::Tensor;
use scalebio::{
    ActiveLayers, AllLayers, Bilevel, Error, Gradients, LayerSampler, Lisa, LowerObjective, Result,
    Run, ScaleBio, Update, UpperObjective,
};

use crate::zoo::{self, Vector, bits, flex};

#[derive(Module, Debug)]
struct Block {
    weight: Vector,
    bias: Vector,
}

#[derive(Module, Debug)]
struct Inner {
    blocks: Vec<Vector>,
}

/// Twelve blocks, and lists whose paths contain `blocks` too.
#[derive(Module, Debug)]
pub struct Model {
    embedding: Vector,
    blocks: Vec<Block>,
    blocks_old: Vec<Vector>,
    inner: Inner,
    head: Vector,
}

pub const BLOCKS: usize = 12;
/// Parameters outside the list of blocks: embedding, two decoys a list, head.
pub const OTHERS: usize = 6;

pub fn model() -> Model {
    let vector = |value: f64| zoo::vector(&[value, -value, 0.5], &flex());
    let pair = |value: f64| vec![vector(value), vector(value + 0.1)];
    let block = |i: i32| Block {
        weight: vector(2.0 + 0.1 * f64::from(i)),
        bias: vector(-3.0 - 0.1 * f64::from(i)),
    };
    Model {
        embedding: vector(5.0),
        blocks: (0..12).map(block).collect(),
        blocks_old: pair(6.0),
        inner: Inner { blocks: pair(7.0) },
        head: vector(8.0),
    }
}

impl Model {
    fn all(&self) -> Tensor<1> {
        let blocks = self.blocks.iter().flat_map(|b| [&b.weight, &b.bias]);
        let rest = [&self.embedding, &self.head].into_iter();
        let decoys = self.blocks_old.iter().chain(&self.inner.blocks);
        Tensor::cat(
            blocks.chain(rest).chain(decoys).map(Param::val).collect(),
            0,
        )
    }
}

pub type Loss = fn(&Vector, &Model) -> Tensor<1>;

/// Every parameter is pulled to 1 by the upper and to `x` by the lower objective.
fn problem() -> Bilevel<Loss, Loss> {
    Bilevel {
        upper: |_, w| (w.all() - 1.0).square().sum() * 0.5,
        lower: |x, w| (w.all() - x.val()).square().sum() * 0.5,
    }
}

pub fn sgd() -> ScaleBio {
    ScaleBio::new(Update::sgd(0.01), Update::sgd(0.01))
}

pub fn adam() -> ScaleBio {
    ScaleBio::new(Update::adam(0.01), Update::adam(0.01))
}

pub fn lisa() -> Lisa {
    Lisa::over(&model(), "blocks").unwrap()
}

pub fn start(method: ScaleBio) -> Run<Loss, Loss, Vector, Model> {
    let x = zoo::vector(&[0.0], &flex());
    method.start(problem(), x, model()).unwrap()
}

#[derive(Default)]
struct Parameters {
    path: Vec<String>,
    values: BTreeMap<String, Vec<f64>>,
}

impl ModuleVisitor for Parameters {
    fn enter_module(&mut self, name: &str, _container_type: &str) {
        self.path.push(name.to_owned());
    }

    fn exit_module(&mut self, _name: &str, _container_type: &str) {
        self.path.pop();
    }

    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let values = param.val().into_data().iter::<f64>().collect();
        self.values.insert(self.path.join("."), values);
    }
}

/// The values of all parameters, by path.
pub fn parameters(module: &impl Module) -> BTreeMap<String, Vec<f64>> {
    let mut visitor = Parameters::default();
    module.visit(&mut visitor);
    visitor.values
}

fn all_bits(run: &Run<Loss, Loss, Vector, Model>) -> Vec<Vec<u64>> {
    let (w, u) = (parameters(run.lower()), parameters(run.auxiliary()));
    let all = w.values().chain(u.values()).map(|values| bits(values));
    all.chain([bits(&zoo::values(run.upper().val()))]).collect()
}

/// Paths whose values are not bit-identical.
pub fn moved(
    before: &BTreeMap<String, Vec<f64>>,
    after: &BTreeMap<String, Vec<f64>>,
) -> BTreeSet<String> {
    let differs = |path: &&String| bits(&before[*path]) != bits(&after[*path]);
    before.keys().filter(differs).cloned().collect()
}

/// Takes a step. Returns what moved in `w` and in `u`.
fn moved_by_step(run: &mut Run<Loss, Loss, Vector, Model>) -> [BTreeSet<String>; 2] {
    let before = [parameters(run.lower()), parameters(run.auxiliary())];
    run.next().unwrap().unwrap();
    let after = [parameters(run.lower()), parameters(run.auxiliary())];
    [moved(&before[0], &after[0]), moved(&before[1], &after[1])]
}

/// The blocks among paths that must be whole blocks and everything outside the list (or nothing of it).
pub fn blocks_of(paths: &BTreeSet<String>, others: usize) -> BTreeSet<usize> {
    let (inside, outside): (Vec<&String>, Vec<&String>) =
        paths.iter().partition(|path| path.starts_with("blocks."));
    assert_eq!(outside.len(), others, "{paths:?}");
    let index = |path: &&String| path.split('.').nth(1).unwrap().parse().unwrap();
    let blocks: BTreeSet<usize> = inside.iter().map(index).collect();
    assert_eq!(inside.len(), 2 * blocks.len(), "{paths:?}");
    blocks
}

/// The blocks of `w` and of `u` that train according to a sampler.
fn drawn(layers: &ActiveLayers) -> [BTreeSet<usize>; 2] {
    [&layers.lower, &layers.auxiliary].map(|group| {
        let active = |i: &usize| group.matches(&ParamId::new(), Some(&format!("blocks.{i}.bias")));
        (0..BLOCKS).filter(active).collect()
    })
}

#[test]
fn lisa_trains_only_the_active_blocks_and_what_is_outside_the_list() {
    let mut run = start(sgd().layers(lisa().period(4).seed(3)));
    let mut periods = Vec::new();
    for _ in 0..6 {
        let first = moved_by_step(&mut run).map(|paths| blocks_of(&paths, OTHERS));
        assert!(first.iter().all(|blocks| blocks.len() == 2));
        for _ in 1..4 {
            let next = moved_by_step(&mut run).map(|paths| blocks_of(&paths, OTHERS));
            assert_eq!(next, first, "a redraw within a period");
        }
        periods.push(first);
    }
    // Seed 3: no two periods in a row are alike, and neither are w and u in all of them.
    assert!(periods.windows(2).all(|pair| pair[0] != pair[1]));
    assert!(periods.iter().any(|[w, u]| w != u));
}

#[test]
fn block_1_is_not_taken_for_block_10_or_11() {
    let mut run = start(sgd().layers(lisa().active(1).period(1).shared()));
    let mut seen = BTreeSet::new();
    for _ in 0..150 {
        let [w, u] = moved_by_step(&mut run).map(|paths| blocks_of(&paths, OTHERS));
        assert_eq!(w.len(), 1);
        assert_eq!(w, u);
        seen.extend(w);
    }
    // A block is missed by 150 draws with probability 2e-6.
    assert_eq!(seen.len(), BLOCKS);
}

/// Whether a count is within five standard deviations of its mean.
fn assert_binomial(count: usize, draws: usize, p: f64) {
    let draws = draws as f64;
    let (mean, deviation) = (draws * p, (draws * p * (1.0 - p)).sqrt());
    let distance = (count as f64 - mean).abs() / deviation;
    assert!(
        distance < 5.0,
        "{count} of {draws} where {mean} are expected"
    );
}

#[test]
fn every_block_and_every_pair_of_blocks_is_drawn_equally_often() {
    let draws = 13_200;
    let mut sampler = lisa().period(1);
    let mut of_blocks = [[0; BLOCKS]; 2];
    let mut of_pairs = BTreeMap::new();
    let mut same = 0;
    for step in 0..draws {
        let layers = sampler.sample(step).unwrap();
        let blocks = drawn(&layers);
        for (counts, blocks) in of_blocks.iter_mut().zip(&blocks) {
            assert_eq!(blocks.len(), 2);
            blocks.iter().for_each(|&block| counts[block] += 1);
        }
        *of_pairs.entry(blocks[0].clone()).or_insert(0) += 1;
        same += usize::from(blocks[0] == blocks[1]);
    }
    for count in of_blocks.concat() {
        assert_binomial(count, draws, 2.0 / 12.0);
    }
    assert_eq!(of_pairs.len(), 66);
    for &count in of_pairs.values() {
        assert_binomial(count, draws, 1.0 / 66.0);
    }
    // u and w draw independently: they agree as often as two strangers.
    assert_binomial(same, draws, 1.0 / 66.0);
}

#[test]
fn every_block_is_drawn_in_time() {
    for seed in 0..20 {
        let mut sampler = lisa().period(1).seed(seed);
        let mut seen = [BTreeSet::new(), BTreeSet::new()];
        // A block is missed by 150 draws of 2 of 12 with probability 1.3e-12.
        for step in 0..150 {
            let blocks = drawn(&sampler.sample(step).unwrap());
            seen.iter_mut().zip(blocks).for_each(|(s, b)| s.extend(b));
        }
        assert!(seen.iter().all(|seen| seen.len() == BLOCKS), "seed {seed}");
    }
}

#[test]
fn u_and_w_train_the_same_blocks_when_shared() {
    let mut sampler = lisa().period(1).shared();
    for step in 0..50 {
        let [w, u] = drawn(&sampler.sample(step).unwrap());
        assert_eq!(w, u);
    }
}

#[test]
fn others_stand_still_when_frozen() {
    let mut run = start(sgd().layers(lisa().period(2).freeze_others()));
    let start = parameters(run.lower());
    for _ in 0..10 {
        let blocks = moved_by_step(&mut run).map(|paths| blocks_of(&paths, 0));
        assert!(blocks.iter().all(|blocks| blocks.len() == 2));
    }
    let left = moved(&start, &parameters(run.lower()));
    assert!(left.iter().all(|path| path.starts_with("blocks.")));
}

#[test]
fn layers_are_redrawn_exactly_at_multiples_of_the_period() {
    for period in [1, 2, 5, 20] {
        let mut sampler = lisa().period(period);
        for step in 0..61 {
            assert_eq!(sampler.sample(step).is_some(), step % period == 0);
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run_and_another_seed_another() {
    let after = |seed| {
        let mut run = start(adam().layers(lisa().period(1).seed(seed)));
        run.by_ref().take(8).for_each(|step| drop(step.unwrap()));
        all_bits(&run)
    };
    assert_eq!(after(5), after(5));
    assert_ne!(after(5), after(6));
}

#[test]
fn lisa_with_all_blocks_is_training_without_lisa_bit_for_bit() {
    let decayed = || Update::adamw(0.01).weight_decay(0.1);
    let methods: [fn() -> ScaleBio; 2] = [sgd, adam];
    let weighted = || ScaleBio::new(Update::adamw(0.01), decayed()).clip(0.5);
    let after = |method: ScaleBio| {
        let mut run = start(method);
        run.by_ref().take(25).for_each(|step| drop(step.unwrap()));
        all_bits(&run)
    };
    let all = || lisa().active(BLOCKS).period(3);
    for method in methods {
        assert_eq!(
            after(method().layers(all())),
            after(method().layers(AllLayers))
        );
    }
    assert_eq!(after(weighted().layers(all())), after(weighted()));
}

#[test]
fn a_path_without_blocks_is_an_error_that_lists_the_paths_there_are() {
    for path in [
        "block", "blocks.", "blocks.1", "inner", "head", "", "layers",
    ] {
        let error = Lisa::over(&model(), path).unwrap_err();
        let Error::UnknownBlocks {
            path: given,
            available,
        } = &error
        else {
            panic!("{error}");
        };
        assert_eq!(given, path);
        assert_eq!(available, &["blocks", "blocks_old", "inner.blocks"]);
        let text = error.to_string();
        for path in [path, "`blocks`", "`blocks_old`", "`inner.blocks`"] {
            assert!(text.contains(path), "{text}");
        }
    }
    let single = zoo::vector(&[0.0], &flex());
    let text = Lisa::over(&single, "blocks").unwrap_err().to_string();
    assert!(text.contains("no list"), "{text}");
}

#[test]
fn every_list_is_found_by_its_exact_path_and_the_empty_path_is_the_module_itself() {
    let blocks = |path| Lisa::over(&model(), path).unwrap().blocks();
    assert_eq!(
        [
            blocks("blocks"),
            blocks("blocks_old"),
            blocks("inner.blocks")
        ],
        [12, 2, 2]
    );
    let list: Vec<Vector> = model().blocks_old;
    assert_eq!(Lisa::over(&list, "").unwrap().blocks(), 2);

    // Over a decoy, the twelve blocks are among the others.
    let decoys = Lisa::over(&model(), "inner.blocks").unwrap();
    let mut run = start(sgd().layers(decoys.active(1).shared()));
    let [w, _] = moved_by_step(&mut run);
    let of_decoys = w.iter().filter(|path| path.starts_with("inner.")).count();
    assert_eq!((w.len(), of_decoys), (2 * BLOCKS + OTHERS - 1, 1));
}

/// A sampler of the user's: the head alone for three steps, then everything. Counts the questions.
#[derive(Debug, Default)]
struct HeadFirst {
    asked: usize,
}

impl LayerSampler for HeadFirst {
    fn sample(&mut self, step: usize) -> Option<ActiveLayers> {
        assert_eq!(step, self.asked, "asked once a step, in order");
        self.asked += 1;
        match step {
            1 => Some(ActiveLayers::same(ParamGroup::from_path("head"))),
            4 => Some(ActiveLayers::same(ParamGroup::all())),
            _ => None,
        }
    }
}

#[test]
fn a_sampler_of_the_users_own_works() {
    let mut run = start(sgd().layers(HeadFirst::default()));
    let all = 2 * BLOCKS + OTHERS;
    for expected in [all, 1, 1, 1, all, all] {
        let [w, u] = moved_by_step(&mut run);
        assert_eq!((w.len(), u.len()), (expected, expected));
        assert!(w.contains("head") && u.contains("head"));
    }
}

#[test]
fn a_sampler_may_refuse_its_settings() {
    #[derive(Debug)]
    struct Never;

    impl LayerSampler for Never {
        fn sample(&mut self, _: usize) -> Option<ActiveLayers> {
            None
        }

        fn validate(&self) -> Result<()> {
            Err(Error::Objective("this sampler never works".into()))
        }
    }

    let x = zoo::vector(&[0.0], &flex());
    let error = sgd().layers(Never).start(problem(), x, model());
    assert!(error.err().unwrap().to_string().contains("never works"));
}

/// Gives the gradient 1 for every parameter, frozen or not, as an objective with a backward pass of its
/// own may.
struct Everything;

struct Ones(Gradients);

impl ModuleVisitor for Ones {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        let ones = param.val().inner().ones_like();
        self.0.of_lower.register(param.id, ones);
    }
}

impl LowerObjective<Vector, Model> for Everything {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, _: &Vector, w: &Model, (): &()) -> Tensor<1> {
        w.all().sum()
    }

    fn gradients(&self, _: &Vector, w: &Model, (): &()) -> Result<Gradients> {
        let mut ones = Ones(Gradients::default());
        w.visit(&mut ones);
        Ok(ones.0)
    }
}

impl UpperObjective<Vector, Model> for Everything {
    type Batch = ();

    fn sample(&mut self) -> Result<Vec<()>> {
        Ok(vec![()])
    }

    fn loss(&self, _: &Vector, w: &Model, (): &()) -> Tensor<1> {
        w.all().sum()
    }
}

#[test]
fn frozen_blocks_stand_still_even_if_an_objective_gives_their_gradients() {
    let everything = Bilevel {
        upper: Everything,
        lower: Everything,
    };
    let x = zoo::vector(&[0.0], &flex());
    let method = sgd().penalty(2.0).layers(lisa().period(5));
    let mut run = method.start(everything, x, model()).unwrap();
    let start = [parameters(run.lower()), parameters(run.auxiliary())];
    for _ in 0..5 {
        let step = run.next().unwrap().unwrap();
        // Nor do they count in the norms: 10 tensors of 3 numbers train, gradients 1 + 2 and 2.
        let norms = step.gradient_norms();
        assert!(
            (norms.lower - 3.0 * 30_f64.sqrt()).abs() < 1e-12,
            "{norms:?}"
        );
        assert!((norms.auxiliary - 2.0 * 30_f64.sqrt()).abs() < 1e-12);
    }
    for (start, end) in start.iter().zip([run.lower(), run.auxiliary()]) {
        let blocks = blocks_of(&moved(start, &parameters(end)), OTHERS);
        assert_eq!(blocks.len(), 2);
    }
}
