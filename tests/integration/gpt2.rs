//! GPT-2 against transformers, and what must hold for any causal model.

use std::{path::Path, process::Command};

use proptest::prelude::*;
use scalebio::{
    Error,
    burn::{
        module::Module,
        tensor::{Device, Int, Tensor, TensorData},
    },
    models::{Gpt2, Gpt2Config, sample_losses, token_losses},
};

use crate::compare::compare;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/gpt2");

fn expected() -> std::path::PathBuf {
    Path::new(FIXTURE).join("expected.safetensors")
}

fn tiny() -> Gpt2Config {
    Gpt2Config::new(23, 16, 12, 2, 3)
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_into_vec().unwrap()
}

fn ints<const N: usize>(rows: &[[i64; N]], device: &Device) -> Tensor<2, Int> {
    let data = TensorData::new(rows.concat(), [rows.len(), N]);
    Tensor::from_data(data, device)
}

/// Losses of each sample, for rows of tokens that are all labels, padded on the right to `length`.
fn losses(model: &Gpt2, rows: &[Vec<i64>], length: usize) -> Vec<f32> {
    let device = Device::flex();
    let padded = |filler: i64, value: &dyn Fn(i64) -> i64| {
        let values = rows.iter().flat_map(|row| {
            let padding = std::iter::repeat_n(filler, length - row.len());
            row.iter()
                .map(|id| value(*id))
                .chain(padding)
                .collect::<Vec<_>>()
        });
        let data = TensorData::new(values.collect::<Vec<_>>(), [rows.len(), length]);
        Tensor::<2, Int>::from_data(data, &device)
    };
    let (ids, mask, labels) = (
        padded(5, &|id| id),
        padded(0, &|_| 1),
        padded(-100, &|id| id),
    );
    let losses = token_losses(model.logits(ids, mask), labels.clone());
    floats(sample_losses(losses, labels))
}

#[test]
fn gpt2_agrees_with_transformers() {
    #[allow(deprecated)] // The second CPU device.
    let devices = [
        Device::flex(),
        Device::ndarray(),
        Device::flex().autodiff().gradient_checkpointing(),
    ];
    for device in devices {
        let report = compare(Path::new(FIXTURE), &expected(), &device).unwrap();
        assert!(report.within(1e-5), "{device:?}: {report:?}");
        assert_eq!(report.parameters, 43_328);
    }
}

#[test]
fn a_model_without_gradients_computes_the_same() {
    let device = Device::flex().autodiff();
    let model = Gpt2::pretrained(FIXTURE, &device).unwrap();
    let ids = ints(&[[1, 2, 3, 4, 5, 6]], &device);
    let (plain, mask) = (ids.clone().inner(), ids.ones_like());
    let a = floats(model.logits(ids.clone(), mask.clone()));
    let frozen = floats(model.clone().no_grad().logits(ids, mask.clone()));
    assert!(a.iter().zip(&frozen).all(|(a, b)| (a - b).abs() < 1e-5));
    let b = floats(model.valid().logits(plain, mask.inner()));
    assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn check_model_exits_0_only_within_its_tolerances() {
    let directory = std::env::current_exe().unwrap();
    let program = directory
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples/check_model");
    let run = |arguments: &[&str]| {
        let output = Command::new(&program)
            .args([FIXTURE])
            .arg(expected())
            .args(arguments)
            .output()
            .unwrap();
        (
            output.status.success(),
            String::from_utf8(output.stdout).unwrap(),
        )
    };

    let (passed, line) = run(&[]);
    assert!(passed, "{line}");
    assert_eq!(line.lines().count(), 1);
    let report: serde_json::Value = serde_json::from_str(&line).unwrap();
    let keys: Vec<_> = report
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect();
    let all = [
        "architecture",
        "max_abs_logit_error",
        "max_abs_nll_error",
        "max_rel_grad_error",
        "parameters",
        "worst_grad",
    ];
    assert_eq!(keys, all);
    assert!(
        report["worst_grad"]
            .as_str()
            .unwrap()
            .starts_with("grad.transformer.")
    );

    assert!(!run(&["--tolerance", "1e-9"]).0);
    assert!(!run(&["--device", "nothing"]).0);
}

#[test]
fn gpt2_124m_has_its_parameters() {
    // Parameters are drawn when they are first used: nothing is allocated here.
    let model = Gpt2Config::default().init(0, &Device::flex()).unwrap();
    assert_eq!(model.num_params(), 124_439_808);
}

#[test]
fn a_seed_gives_the_same_weights_on_every_device() {
    #[allow(deprecated)] // The second CPU device, to compare with.
    let devices = [Device::flex(), Device::flex().autodiff(), Device::ndarray()];
    let logits = |seed, device| {
        let model = tiny().init(seed, device).unwrap();
        let ids = ints(&[[1, 2, 3, 4]], device);
        floats(model.logits(ids.clone(), ids.ones_like()))
    };
    let first = logits(7, &devices[0]);
    for device in &devices {
        let same = logits(7, device);
        assert!(
            first.iter().zip(&same).all(|(a, b)| (a - b).abs() < 1e-6),
            "{device:?}"
        );
    }
    assert_ne!(first, logits(8, &devices[0]));
}

#[test]
fn random_weights_have_gpt2s_spread() {
    let device = Device::flex();
    let config = Gpt2Config::new(500, 64, 64, 8, 4);
    let folder = tempfile::tempdir().unwrap();
    config
        .init(0, &device)
        .unwrap()
        .save(folder.path())
        .unwrap();
    let bytes = std::fs::read(folder.path().join("model.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let spread = |name: &str| {
        let tensor = file.tensor(name).unwrap();
        let values = tensor
            .data()
            .as_chunks::<4>()
            .0
            .iter()
            .map(|b| f64::from(f32::from_le_bytes(*b)));
        let (count, sum) = values
            .clone()
            .fold((0.0, 0.0), |(n, s), v| (n + 1.0, s + v * v));
        (sum / count).sqrt()
    };
    let near = |name: &str, std: f64| {
        assert!(
            (spread(name) / std - 1.0).abs() < 0.05,
            "{name}: {}",
            spread(name)
        )
    };
    near("transformer.wte.weight", 0.02);
    near("transformer.h.3.attn.c_attn.weight", 0.02);
    near("transformer.h.3.attn.c_proj.weight", 0.02 / 4.0);
    near("transformer.h.7.mlp.c_proj.weight", 0.02 / 4.0);
    near("transformer.h.0.ln_1.weight", 1.0);
    assert!(spread("transformer.h.0.mlp.c_fc.bias") == 0.0);
}

#[test]
fn a_fresh_model_knows_nothing() {
    let model = tiny().init(0, &Device::flex()).unwrap();
    let loss = losses(&model, &[vec![1, 2, 3, 4, 5, 6]], 6)[0];
    assert!((loss - 23f32.ln()).abs() < 0.1, "{loss}");
}

#[test]
fn losses_are_means_over_label_tokens() {
    let device = Device::flex();
    // Even logits: each token costs ln 4, whatever it is.
    let logits = Tensor::<3>::zeros([3, 4, 4], &device);
    let labels = ints(
        &[[-100, 1, 2, 3], [-100, -100, 2, -100], [-100; 4]],
        &device,
    );
    let tokens = token_losses(logits, labels.clone());
    let nat = 4f32.ln();
    let each = [nat, nat, nat, 0.0, nat, 0.0, 0.0, 0.0, 0.0];
    assert!(
        floats(tokens.clone())
            .iter()
            .zip(each)
            .all(|(a, b)| (a - b).abs() < 1e-6)
    );
    let samples = floats(sample_losses(tokens, labels));
    assert!(
        samples
            .iter()
            .zip([nat, nat, 0.0])
            .all(|(a, b)| (a - b).abs() < 1e-6),
        "{samples:?}"
    );
}

#[test]
fn losses_of_extreme_logits_are_finite() {
    let device = Device::flex();
    let logits = Tensor::<3>::from_data([[[1e30, 0.0], [-1e30, 1e4], [0.0, 0.0]]], &device);
    let found = floats(token_losses(logits, ints(&[[0, 0, 0]], &device)));
    assert_eq!(found.len(), 2);
    assert!(
        found[0].abs() < 1e-6 && found[1] > 1e29 && found[1].is_finite(),
        "{found:?}"
    );
}

#[test]
fn a_single_token_has_no_loss() {
    let device = Device::flex();
    let labels = ints(&[[1], [1]], &device);
    let tokens = token_losses(Tensor::zeros([2, 1, 4], &device), labels.clone());
    assert_eq!(tokens.dims(), [2, 0]);
    assert_eq!(floats(sample_losses(tokens, labels)), [0.0, 0.0]);
}

#[test]
fn rows_without_any_token_give_finite_logits() {
    let device = Device::flex();
    let model = tiny().init(0, &device).unwrap();
    let logits = model.logits(ints(&[[1, 2, 3]], &device), ints(&[[0, 0, 0]], &device));
    assert!(floats(logits).iter().all(|v| v.is_finite()));
}

#[test]
fn an_untied_head_is_a_parameter_of_its_own() {
    let config = Gpt2Config {
        tie_word_embeddings: false,
        ..tiny()
    };
    let device = Device::flex();
    let [tied, untied] = [tiny(), config].map(|c| c.init(0, &device).unwrap());
    assert_eq!(untied.num_params(), tied.num_params() + 23 * 12);
    assert_eq!(Gpt2::checkpoint_name("lm_head.weight"), "lm_head.weight");
}

#[test]
fn sizes_that_cannot_work_are_refused() {
    let refused = |config: Gpt2Config, name: &str| {
        let error = config.init(0, &Device::flex()).unwrap_err();
        assert!(matches!(error, Error::Setting { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with(&format!("{name} is ")), "{text}");
    };
    refused(Gpt2Config::new(0, 16, 12, 2, 3), "vocab_size");
    refused(Gpt2Config::new(23, 0, 12, 2, 3), "n_positions");
    refused(Gpt2Config::new(23, 16, 0, 2, 3), "n_embd");
    refused(Gpt2Config::new(23, 16, 12, 0, 3), "n_layer");
    refused(Gpt2Config::new(23, 16, 12, 2, 0), "n_head");
    refused(Gpt2Config::new(23, 16, 12, 2, 5), "n_head");
    refused(Gpt2Config::new(usize::MAX, 16, 12, 2, 3), "vocab_size");
    refused(
        Gpt2Config {
            n_inner: Some(0),
            ..tiny()
        },
        "n_inner",
    );
    refused(
        Gpt2Config {
            layer_norm_epsilon: f64::NAN,
            ..tiny()
        },
        "layer_norm_epsilon",
    );
    refused(
        Gpt2Config {
            initializer_range: -1.0,
            ..tiny()
        },
        "initializer_range",
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn padding_changes_no_loss(
        rows in prop::collection::vec(prop::collection::vec(0..23i64, 2..8), 1..4),
        extra in 1..8usize,
    ) {
        let model = Gpt2Config { initializer_range: 0.3, ..tiny() }.init(1, &Device::flex()).unwrap();
        let longest = rows.iter().map(Vec::len).max().unwrap();
        let (short, long) = (losses(&model, &rows, longest), losses(&model, &rows, longest + extra));
        for (a, b) in short.iter().zip(&long) {
            prop_assert!((a - b).abs() <= 1e-6 * a.abs().max(1.0), "{} {}", a, b);
        }
    }

    #[test]
    fn later_tokens_do_not_change_earlier_logits(
        ids in prop::array::uniform8(0..23i64),
        later in prop::array::uniform8(0..23i64),
        cut in 1..8usize,
    ) {
        let device = Device::flex();
        let model = Gpt2Config { initializer_range: 0.3, ..tiny() }.init(1, &device).unwrap();
        let mut changed = ids;
        changed[cut..].copy_from_slice(&later[cut..]);
        let both = ints(&[ids, changed], &device);
        let logits = floats(model.logits(both.clone(), both.ones_like()));
        let (first, second) = logits.split_at(8 * 23);
        for (a, b) in first[..cut * 23].iter().zip(second) {
            prop_assert!((a - b).abs() < 1e-6);
        }
    }
}
