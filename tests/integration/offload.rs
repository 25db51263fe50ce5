//! Frozen blocks in host memory: the same run, less on the device, and a price that is known.

use burn::module::{Module, ModuleVisitor, Param, ParamGroup, ParamId};
use burn::tensor::{Device, Int, Tensor};
use scalebio::data::{Sample, TokenBatch};
use scalebio::models::{CausalLm, Differentiation, Dtype, Gpt2Config, ModelSize, Sampling};
use scalebio::reweight::SampleLosses;
use scalebio::{LayerSampler, Lisa, Moments, Offload, ScaleBio, Step, Update};

use crate::blockwise::{folders, read, with_active};
use crate::lisa_gpt2::{LanguageRun, bits, problem, start};

mod settings;

const STEPS: usize = 10;
const PERIOD: usize = 3;

/// The device that computes, and the host.
fn devices() -> [Device; 2] {
    #[allow(deprecated)]
    let devices = [Device::ndarray().autodiff(), Device::flex().autodiff()];
    devices
}

fn lisa(model: &CausalLm) -> Lisa {
    let lisa = Lisa::over(model, &model.blocks_path()).unwrap();
    lisa.active(1).period(PERIOD).seed(2)
}

fn method(model: &CausalLm) -> ScaleBio {
    let update = |rate| Update::adamw(rate);
    ScaleBio::new(update(1e-2), update(1e-3))
        .layers(lisa(model))
        .clip(1.0)
}

fn begin(model: CausalLm) -> LanguageRun {
    start(method(&model), model)
}

fn take(run: &mut LanguageRun, steps: usize) -> Vec<Step> {
    run.by_ref().take(steps).map(Result::unwrap).collect()
}

/// All numbers of steps but the bytes that they moved.
fn numbers(steps: &[Step]) -> Vec<u64> {
    let of_step = |step: &Step| {
        let norms = step.gradient_norms();
        let mut numbers = vec![step.upper_loss(), step.lower_loss(), step.auxiliary_loss()];
        numbers.extend([norms.upper, norms.lower, norms.auxiliary]);
        numbers.extend(step.lower_parts());
        numbers
    };
    let numbers = steps.iter().flat_map(of_step);
    numbers.map(f64::to_bits).collect()
}

type Bits = Vec<(String, Vec<u32>)>;

/// The end of a run, bit by bit.
fn end(run: &LanguageRun) -> (Vec<u64>, [Bits; 2]) {
    let logits = run.upper().logit_values();
    let logits = logits.into_iter().map(f64::to_bits).collect();
    (logits, [bits(run.lower()), bits(run.auxiliary())])
}

fn with_moments(model: &CausalLm) -> Option<Offload> {
    model.offloaded().map(Offload::moments)
}

pub const PLACES: [fn(&CausalLm) -> Option<Offload>; 2] = [CausalLm::offloaded, with_moments];

/// The promise: for each of the seven checkpoints, wherever moments are, in turn or in parallel, losses, gradients, weights
/// and models of a run whose frozen blocks are on the host are those of the run without, bit for bit, and the models that
/// come out of it compute alike.
#[test]
fn an_offloaded_run_is_the_run_bit_for_bit() {
    let [device, host] = devices();
    for folder in folders("hf") {
        for how in [Some(Differentiation::Blockwise), None] {
            let load = |on: &Device| {
                let model = CausalLm::from_pretrained(&folder, on).unwrap();
                model.with_differentiation(how)
            };
            let mut expected = begin(load(&device));
            let steps = take(&mut expected, STEPS);
            assert!(steps.iter().all(|step| step.bytes_moved().is_none()));
            for (index, of) in PLACES.into_iter().enumerate() {
                // Opened on the host or on the device, it is the same.
                let model = load(if index == 0 { &host } else { &device });
                let model = model.offload(std::slice::from_ref(&device), &host).unwrap();
                let mut run = begin(model).offload(of);
                if index == 0 {
                    run = run.in_parallel();
                }
                let found = take(&mut run, STEPS);
                let what = format!("{}, {how:?}, {index}", folder.display());
                assert_eq!(numbers(&found), numbers(&steps), "{what}");
                assert_eq!(end(&run), end(&expected), "{what}");
                assert!(found.iter().all(|step| step.bytes_moved() > Some(0)));
                same_model(run.lower(), expected.lower());
            }
        }
    }
}

/// Six steps of a small GPT-2 are those of the device alone, bit for bit, and the device holds the active blocks.
#[cfg(feature = "wgpu")]
pub fn check(device: &Device, host: &Device, of: fn(&CausalLm) -> Option<Offload>) {
    let config = Gpt2Config::new(20, 8, 8, 4, 2);
    let model = CausalLm::from(config.init(3, device).unwrap());
    let model = model.with_differentiation(Differentiation::Blockwise);
    let mut expected = begin(model.clone());
    let steps = take(&mut expected, 2 * PERIOD);
    let away = model.offload(std::slice::from_ref(device), host).unwrap();
    let block = 4 * ModelSize::of(&away).per_block();
    let mut run = begin(away).offload(of);
    let found = take(&mut run, 2 * PERIOD);
    assert_eq!(numbers(&found), numbers(&steps));
    assert_eq!(end(&run), end(&expected));
    let held = |run: &LanguageRun| live(run.lower(), device) + live(run.auxiliary(), device);
    assert_eq!(held(&expected) - held(&run), 2 * 3 * block);
}

/// The two models generate the same, and have the same bits after they were saved and opened again.
fn same_model(a: &CausalLm, b: &CausalLm) {
    let text = |model: &CausalLm| -> Vec<u32> {
        let tokens = model.generate(&[1, 5, 3], Sampling::Greedy).unwrap();
        tokens.take(8).collect()
    };
    assert_eq!(text(a), text(b));
    let saved = |model: &CausalLm| {
        let folder = tempfile::tempdir().unwrap();
        model.save_pretrained(folder.path(), u64::MAX).unwrap();
        bits(&CausalLm::from_pretrained(folder.path(), &Device::flex()).unwrap())
    };
    assert_eq!(saved(a), saved(b));
}

/// Bytes of the parameters on a device, by visiting a model.
fn live(model: &CausalLm, device: &Device) -> usize {
    struct Live<'a>(&'a Device, usize);

    impl ModuleVisitor for Live<'_> {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let value = param.val();
            if value.device() == *self.0 {
                self.1 += value.shape().num_elements() * value.dtype().size();
            }
        }
    }

    let mut live = Live(device, 0);
    model.visit(&mut live);
    live.1
}

/// Which blocks of `w` and `u` a sampler draws for each of so many steps.
fn drawn(model: &CausalLm, steps: usize) -> Vec<[Vec<usize>; 2]> {
    let (mut lisa, blocks) = (lisa(model), ModelSize::of(model).blocks());
    let of_group = |group: &ParamGroup| {
        let probe = format!("{}.", model.blocks_path());
        let paths: Vec<_> = bits(model).into_iter().map(|(path, _)| path).collect();
        let is_active = |block: &usize| {
            let prefix = format!("{probe}{block}.");
            let mut inside = paths.iter().filter(|path| path.starts_with(&prefix));
            inside.any(|path| group.matches(&ParamId::new(), Some(path)))
        };
        (0..blocks).filter(is_active).collect()
    };
    let mut drawn: Vec<[Vec<usize>; 2]> = Vec::new();
    for step in 0..steps {
        drawn.push(match lisa.sample(step) {
            Some(active) => [of_group(&active.lower), of_group(&active.auxiliary)],
            None => drawn[step - 1].clone(),
        });
    }
    drawn
}

/// What the device holds falls by exactly the bytes of the frozen blocks, and with moments on the host by theirs too; what
/// a step moves is what the documentation says: a frozen block's parameters twice a gradient, a block that changes its
/// state once, and what the optimizer remembers there and back.
#[test]
fn the_device_holds_the_active_blocks_and_the_bytes_moved_are_those_of_the_frozen_ones() {
    let [device, host] = devices();
    for name in ["gpt2", "gemma2", "llama3"] {
        let folder = folders("hf")
            .into_iter()
            .find(|f| f.ends_with(name))
            .unwrap();
        let model = CausalLm::from_pretrained(&folder, &device).unwrap();
        let model = model.with_differentiation(Differentiation::Blockwise);
        let size = ModelSize::of(&model);
        let draws = drawn(&model, STEPS);
        assert!(draws.iter().any(|active| *active != draws[0]), "{name}");
        let (all, block) = (4 * size.parameters(), 4 * size.per_block());
        let frozen = 2 * (size.blocks() - 1) * block;
        let moments = 2 * 2 * 4 * size.trained(1, true);

        let mut plain = begin(model.clone());
        let offload = || model.clone().offload(std::slice::from_ref(&device), &host);
        for (index, of) in PLACES.into_iter().enumerate() {
            let mut run = begin(offload().unwrap()).offload(of);
            for step in 0..STEPS {
                take(&mut plain, usize::from(index == 0));
                let moved = take(&mut run, 1)[0].bytes_moved().unwrap();
                let what = format!("{name}, step {step}, moments {index}");

                let on = |device| live(run.lower(), device) + live(run.auxiliary(), device);
                assert_eq!(on(&device), 2 * all - frozen, "{what}");
                assert_eq!(on(&host), frozen, "{what}");
                let kept = run.moment_bytes();
                // Two source weights and their moments stay on the device.
                let of_x = 2 * (4 + 8);
                let of_moments = if index == 0 { moments } else { 0 };
                let held = run.bytes_on(&device);
                assert_eq!(held, 2 * all - frozen + of_x + of_moments, "{what}");
                assert_eq!(held + run.bytes_on(&host), 2 * all + 2 * 4 + kept, "{what}");
                if index == 0 {
                    assert_eq!(plain.bytes_on(&device) - held, frozen, "{what}");
                }

                // Three gradients, two of w and one of u.
                let mut expected = 3 * 2 * frozen / 2;
                let mut returning = 0;
                let before = step.checked_sub(1).map(|step| &draws[step]);
                for (variable, now) in draws[step].iter().enumerate() {
                    let is_new = before.is_none_or(|before| before[variable] != *now);
                    // The first draw finds all blocks on the host.
                    expected += block * (usize::from(is_new) + usize::from(is_new && step > 0));
                    if step > 0 {
                        let stayed = size.trained(usize::from(!is_new), true);
                        returning += 2 * 4 * stayed;
                    }
                }
                if index == 1 {
                    expected += moments + returning;
                }
                assert_eq!(moved, expected as u64, "{what}");
            }
        }
    }
}

/// What an offloaded model says of itself is a run's business alone: without the solver's help gradients are those of the
/// model that is not offloaded, and are where the parameters are. However large the batch, a block is copied twice.
#[test]
fn a_block_is_copied_once_a_pass_for_a_batch_of_any_size() {
    let [device, host] = devices();
    let blocks = 3;
    let config = Gpt2Config::new(50, 128, 128, blocks, 2);
    let model = CausalLm::from(config.init(0, &device).unwrap());
    let model = model.with_differentiation(Differentiation::Blockwise);
    let sample = |index: usize| Sample {
        ids: (0..128 - 3 * index)
            .map(|i| ((index + i * (i + 3)) % 50) as u32)
            .collect(),
        learned: (0..128 - 3 * index).map(|i| i >= index).collect(),
    };
    // Eight samples go through a block at a time.
    for count in [2, 15] {
        let samples: Vec<_> = (0..count).map(sample).collect();
        let batch = TokenBatch::new(&samples.iter().collect::<Vec<_>>());
        let factors: Vec<f64> = (0..count).map(|i| 1.0 - 0.3 * i as f64).collect();
        for active in [None, Some(1)] {
            let model = with_active(&model, &|block, _| block.is_none_or(|b| Some(b) == active));
            let (losses, gradients) = model.differentiate(&batch, &factors).unwrap();
            let expected = (losses, read(&model, &gradients));
            let away = model
                .clone()
                .offload(std::slice::from_ref(&device), &host)
                .unwrap();
            let (losses, gradients) = away.differentiate(&batch, &factors).unwrap();
            let found = (losses, read(&away, &gradients));
            assert_eq!(found, expected, "{count} samples, {active:?}");
            let block = 4 * ModelSize::of(&model).per_block() as u64;
            let moved = away.offloaded().unwrap().bytes_moved();
            match active {
                None => assert_eq!(moved, 2 * blocks as u64 * block),
                // On tapes, for every eight samples again: the solver brings home what trains.
                Some(_) => assert!(moved >= 2 * blocks as u64 * block),
            }
        }
    }
}

/// On the host itself nothing is moved, and the run is the same.
#[test]
fn where_the_host_computes_nothing_moves() {
    let [_, host] = devices();
    let folder = &folders("hf")[0];
    let model = CausalLm::from_pretrained(folder, &host).unwrap();
    for dtype in [Dtype::Float32, Dtype::Bfloat16] {
        let model = model.clone().cast(dtype).unwrap();
        let mut expected = begin(model.clone());
        let steps = take(&mut expected, STEPS);
        for of in PLACES {
            let model = model.clone().offload(std::slice::from_ref(&host), &host);
            let mut run = begin(model.unwrap()).offload(of);
            let found = take(&mut run, STEPS);
            assert_eq!(numbers(&found), numbers(&steps));
            assert_eq!(end(&run), end(&expected));
            assert!(found.iter().all(|step| step.bytes_moved() == Some(0)));
        }
    }
}

/// Blocks spread over two devices, those that are frozen on a host: the run of the spread model, bit for bit, with each
/// active block where it is computed. `u` spread the other way round is its own matter.
#[test]
fn a_spread_model_can_be_offloaded() {
    let [one, other] = devices();
    for name in ["gemma2", "gpt_neox"] {
        let folder = folders("hf")
            .into_iter()
            .find(|f| f.ends_with(name))
            .unwrap();
        let both = [one.clone(), other.clone()];
        let load = || CausalLm::from_pretrained(&folder, &one).unwrap();
        let mut expected = begin(load().spread(&both).unwrap());
        let steps = take(&mut expected, STEPS);
        // A block on the host that is also a device is not copied for it.
        for host in [&one, &other] {
            for of in PLACES {
                let mut run = begin(load().offload(&both, host).unwrap()).offload(of);
                let found = take(&mut run, STEPS);
                assert_eq!(numbers(&found), numbers(&steps), "{name}, {host:?}");
                assert_eq!(end(&run), end(&expected), "{name}, {host:?}");
                assert!(found.iter().all(|step| step.bytes_moved() > Some(0)));
            }
        }
        // Spread anew, it stays offloaded: blocks are on the host, and computed where they now belong.
        let moved = load().offload(&both, &other).unwrap();
        let moved = moved.spread(std::slice::from_ref(&one)).unwrap();
        let blocks = 4 * ModelSize::of(&moved).per_block() * ModelSize::of(&moved).blocks();
        assert_eq!(live(&moved, &other), blocks, "{name}");
        let home = load();
        let (ids, mask) = ids(&one);
        let expected = home.logits(ids.clone(), mask.clone()).into_data();
        assert_eq!(moved.logits(ids, mask).into_data(), expected, "{name}");
    }
}

fn ids(device: &Device) -> (Tensor<2, Int>, Tensor<2, Int>) {
    let ids = Tensor::from_data([[1, 4, 2, 7, 3], [2, 2, 9, 1, 0]], device);
    (ids, Tensor::ones([2, 5], device))
}

/// A run that is stopped and resumed moves the bytes and has the bits of one that was not, whether moments of frozen blocks
/// are dropped or kept, and wherever they are.
#[test]
fn an_offloaded_run_resumes_bit_for_bit() {
    let [device, host] = devices();
    let folder = folders("hf")
        .into_iter()
        .find(|f| f.ends_with("llama3"))
        .unwrap();
    let model = || {
        let model = CausalLm::from_pretrained(&folder, &host).unwrap();
        model.offload(std::slice::from_ref(&device), &host).unwrap()
    };
    for moments in [Moments::Reset, Moments::Keep] {
        for of in PLACES {
            let method = || method(&model()).moments(moments);
            let mut whole = start(method(), model()).offload(of);
            let steps = take(&mut whole, STEPS);
            for at in [0, 1, PERIOD, STEPS - 2] {
                let folder = tempfile::tempdir().unwrap();
                let mut run = start(method(), model()).offload(of);
                let mut found = take(&mut run, at);
                run.checkpoint(folder.path()).unwrap();
                drop(run);
                let (problem, weights) = problem(&device);
                let run = method().resume(folder.path(), problem, weights, model());
                let mut run = run.unwrap().offload(of);
                found.extend(take(&mut run, STEPS - at));
                assert_eq!(found, steps, "{moments:?}, at {at}");
                assert_eq!(end(&run), end(&whole), "{moments:?}, at {at}");
                let held = [&device, &host].map(|device| run.bytes_on(device));
                let expected = [&device, &host].map(|device| whole.bytes_on(device));
                assert_eq!(held, expected, "{moments:?}, at {at}");
            }
        }
    }
}

/// Where all layers train, all go to the device at the first step and stay.
#[test]
fn what_trains_at_every_step_is_moved_once() {
    let [device, host] = devices();
    let load = || CausalLm::from_pretrained(&folders("hf")[1], &device).unwrap();
    let method = || ScaleBio::new(Update::adamw(1e-2), Update::sgd(1e-3));
    let model = load().with_differentiation(Differentiation::Blockwise);
    let mut expected = start(method(), model.clone());
    let steps = take(&mut expected, 3);
    let away = model.offload(std::slice::from_ref(&device), &host).unwrap();
    let size = ModelSize::of(&away);
    let mut run = start(method(), away).offload(with_moments);
    let found = take(&mut run, 3);
    assert_eq!(numbers(&found), numbers(&steps));
    assert_eq!(end(&run), end(&expected));
    let blocks = (2 * 4 * size.blocks() * size.per_block()) as u64;
    let moved: Vec<_> = found
        .iter()
        .map(|step| step.bytes_moved().unwrap())
        .collect();
    assert_eq!(moved, [blocks, 0, 0]);
    assert_eq!(run.bytes_on(&host), 0);
}
