//! Checkpoint folders: what is loaded is what is saved, and nothing damaged gets through or panics.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use proptest::prelude::*;
use safetensors::{Dtype, SafeTensors, tensor::TensorView};
use scalebio::{
    Error,
    burn::tensor::{Device, Int, Tensor},
    models::{Gpt2, Gpt2Config},
};
use serde_json::{Value, json};
use tempfile::TempDir;

const FIXTURE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/hf/gpt2");

type Stored = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn tensors(folder: &Path) -> Stored {
    let bytes = fs::read(folder.join("model.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    file.iter()
        .map(|(name, t)| {
            (
                name.to_owned(),
                (t.dtype(), t.shape().to_vec(), t.data().to_vec()),
            )
        })
        .collect()
}

fn write(folder: &Path, tensors: &Stored) {
    let views = tensors.iter().map(|(name, (dtype, shape, data))| {
        (name, TensorView::new(*dtype, shape.clone(), data).unwrap())
    });
    let bytes = safetensors::serialize(views, None).unwrap();
    fs::write(folder.join("model.safetensors"), bytes).unwrap();
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn write_config(folder: &Path, config: &Value) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// A copy of the fixture, to damage.
fn copy() -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(FIXTURE).join(name), folder.path().join(name)).unwrap();
    }
    folder
}

fn open(folder: &Path) -> scalebio::Result<Gpt2> {
    Gpt2::pretrained(folder, &Device::flex())
}

/// The message of the one error, which names the file.
fn refused(folder: &Path, file: &str) -> String {
    let error = open(folder).unwrap_err();
    let path: PathBuf = folder.join(file);
    assert!(
        matches!(error, Error::File { .. } | Error::Io { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    assert!(text.starts_with(&path.display().to_string()), "{text}");
    text
}

#[test]
fn what_is_loaded_and_saved_is_equal_tensor_for_tensor() {
    let (once, twice) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let deep = once.path().join("a/new/folder");
    open(Path::new(FIXTURE)).unwrap().save(&deep).unwrap();
    assert_eq!(tensors(&deep), tensors(Path::new(FIXTURE)));
    let (saved, original) = (config(&deep), config(Path::new(FIXTURE)));
    for (key, value) in original.as_object().unwrap() {
        assert_eq!(saved.get(key), Some(value), "{key}");
    }

    // Again, through a folder that already holds a checkpoint.
    write_config(twice.path(), &json!({}));
    open(&deep).unwrap().save(twice.path()).unwrap();
    assert_eq!(tensors(twice.path()), tensors(&deep));
    let mut names: Vec<_> = fs::read_dir(twice.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    names.sort();
    assert_eq!(names, ["config.json", "model.safetensors"]);
}

#[test]
fn a_model_made_here_is_a_checkpoint_too() {
    let folder = tempfile::tempdir().unwrap();
    let config = Gpt2Config {
        tie_word_embeddings: false,
        ..Gpt2Config::new(23, 16, 12, 2, 3)
    };
    config
        .init(3, &Device::flex().autodiff())
        .unwrap()
        .save(folder.path())
        .unwrap();
    let again = open(folder.path()).unwrap();
    assert_eq!(again.config().n_embd, 12);
    assert_eq!(self::config(folder.path())["model_type"], "gpt2");
    assert!(tensors(folder.path()).contains_key("lm_head.weight"));
}

#[test]
fn names_without_prefix_masks_and_a_second_head_are_understood() {
    let folder = copy();
    let original = tensors(folder.path());
    let mut other: Stored = original
        .iter()
        .map(|(name, t)| {
            (
                name.strip_prefix("transformer.").unwrap().to_owned(),
                t.clone(),
            )
        })
        .collect();
    other.insert(
        "lm_head.weight".to_owned(),
        original["transformer.wte.weight"].clone(),
    );
    other.insert("h.0.attn.bias".to_owned(), (Dtype::U8, vec![2], vec![0, 0]));
    other.insert(
        "h.0.attn.masked_bias".to_owned(),
        (Dtype::F32, vec![], vec![0; 4]),
    );
    write(folder.path(), &other);
    open(folder.path()).unwrap().save(folder.path()).unwrap();
    assert_eq!(tensors(folder.path()), original);
}

#[test]
fn half_precision_is_converted() {
    let original = tensors(Path::new(FIXTURE));
    for dtype in [Dtype::BF16, Dtype::F16] {
        let folder = copy();
        let mut half = original.clone();
        for (stored, _, data) in half.values_mut() {
            *stored = dtype;
            // Both formats in the upper half of a float: exact for bfloat16, some value for float16.
            *data = data.chunks(4).flat_map(|b| [b[2], b[3] & 0xbf]).collect();
        }
        write(folder.path(), &half);
        let mut settings = config(folder.path());
        settings["dtype"] = json!("bfloat16");
        write_config(folder.path(), &settings);

        open(folder.path()).unwrap().save(folder.path()).unwrap();
        assert_eq!(config(folder.path())["dtype"], "float32");
        for (name, (stored, _, data)) in tensors(folder.path()) {
            assert_eq!(stored, Dtype::F32);
            let bits = half[&name]
                .2
                .chunks(2)
                .map(|b| u16::from_le_bytes([b[0], b[1]]));
            let expected: Vec<u8> = match dtype {
                Dtype::BF16 => bits
                    .flat_map(|b| (u32::from(b) << 16).to_le_bytes())
                    .collect(),
                _ => bits
                    .flat_map(|b| {
                        f32::from(scalebio::burn::tensor::f16::from_bits(b)).to_le_bytes()
                    })
                    .collect(),
            };
            assert_eq!(data, expected, "{name}");
        }
    }
}

#[test]
fn all_tensors_that_do_not_fit_are_listed_in_one_error() {
    let folder = copy();
    let mut changed = tensors(folder.path());
    changed.remove("transformer.h.1.ln_2.bias").unwrap();
    changed.remove("transformer.wpe.weight").unwrap();
    changed.insert(
        "transformer.extra.weight".to_owned(),
        (Dtype::F32, vec![1], vec![0; 4]),
    );
    changed
        .get_mut("transformer.h.0.mlp.c_fc.weight")
        .unwrap()
        .1 = vec![128, 32];
    write(folder.path(), &changed);
    let text = refused(folder.path(), "model.safetensors");
    assert!(
        text.contains("missing: transformer.wpe.weight, transformer.h.1.ln_2.bias;"),
        "{text}"
    );
    assert!(
        text.contains("not part of the model: transformer.extra.weight;"),
        "{text}"
    );
    assert!(
        text.contains(
            "of another shape: transformer.h.0.mlp.c_fc.weight is [128, 32] instead of [32, 128];"
        ),
        "{text}"
    );
}

#[test]
fn a_long_list_of_tensors_is_cut() {
    let folder = copy();
    let mut settings = config(folder.path());
    settings["n_layer"] = json!(5000);
    write_config(folder.path(), &settings);
    let text = refused(folder.path(), "model.safetensors");
    assert!(
        text.len() < 2000 && text.contains("and 59944 more"),
        "{text}"
    );
}

#[test]
fn values_that_are_not_finite_or_not_floats_are_refused() {
    let name = "transformer.h.1.attn.c_proj.bias";
    let folder = copy();
    let mut changed = tensors(folder.path());
    changed.get_mut(name).unwrap().2[8..12].copy_from_slice(&f32::NAN.to_le_bytes());
    write(folder.path(), &changed);
    let text = refused(folder.path(), "model.safetensors");
    assert!(
        text.contains(&format!("tensor `{name}` holds NaN")),
        "{text}"
    );

    changed.get_mut(name).unwrap().0 = Dtype::I32;
    write(folder.path(), &changed);
    let text = refused(folder.path(), "model.safetensors");
    assert!(
        text.contains(&format!(
            "tensor `{name}` is stored as I32, but must be F32, F16 or BF16"
        )),
        "{text}"
    );
}

#[test]
fn a_file_that_is_cut_or_lies_about_its_size_is_refused() {
    let folder = copy();
    let path = folder.path().join("model.safetensors");
    let bytes = fs::read(&path).unwrap();
    for length in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        fs::write(&path, &bytes[..length]).unwrap();
        let text = refused(folder.path(), "model.safetensors");
        assert!(text.contains("not a complete safetensors file"), "{text}");
    }
    for claimed in [0, 7, bytes.len() as u64, 1 << 40, u64::MAX] {
        let mut lying = bytes.clone();
        lying[..8].copy_from_slice(&claimed.to_le_bytes());
        fs::write(&path, lying).unwrap();
        refused(folder.path(), "model.safetensors");
    }
    fs::write(&path, [bytes.as_slice(), b"more"].concat()).unwrap();
    refused(folder.path(), "model.safetensors");
}

#[test]
fn missing_files_are_named() {
    let folder = copy();
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    refused(folder.path(), "model.safetensors");
    fs::write(folder.path().join("model.safetensors.index.json"), "{}").unwrap();
    let text = refused(folder.path(), "model.safetensors.index.json");
    assert!(text.contains("weight_map"), "{text}");
    fs::remove_file(folder.path().join("config.json")).unwrap();
    refused(folder.path(), "config.json");
    refused(&folder.path().join("nowhere"), "config.json");
}

#[test]
fn options_that_would_change_the_result_are_refused_by_name() {
    let cases = [
        ("activation_function", json!("quick_gelu")),
        ("add_cross_attention", json!(true)),
        ("pruned_heads", json!({"0": [1]})),
        ("quantization_config", json!({"bits": 4})),
        ("model_type", json!("llama")),
        ("n_head", json!(5)),
        ("n_embd", json!(-1)),
        ("vocab_size", json!(u64::MAX)),
        ("n_layer", json!(1_000_000_000_000_u64)),
        ("layer_norm_epsilon", json!(0.0)),
    ];
    for (key, value) in cases {
        let folder = copy();
        let mut settings = config(folder.path());
        settings[key] = value.clone();
        write_config(folder.path(), &settings);
        let text = refused(folder.path(), "config.json");
        let shown = value.to_string();
        assert!(
            text.contains(key) || text.contains(shown.trim_matches('"')),
            "{key}: {text}"
        );
    }
}

#[test]
fn scores_are_scaled_as_the_config_says() {
    let device = Device::flex();
    let logits = |folder: &Path| -> Vec<f32> {
        let ids = Tensor::<2, Int>::from_data([[3, 1, 4, 1, 5, 9]], &device);
        let model = open(folder).unwrap();
        let logits = model.logits(ids.clone(), ids.ones_like());
        logits.into_data().try_into_vec().unwrap()
    };
    // Scaling the scores of a block is scaling its queries, the first third of each row of `c_attn`.
    for (key, value, factor) in [
        ("scale_attn_weights", false, [8f32.sqrt(); 3]),
        (
            "scale_attn_by_inverse_layer_idx",
            true,
            [1.0, 1.0 / 2.0, 1.0 / 3.0],
        ),
    ] {
        let (by_config, by_weights) = (copy(), copy());
        let mut settings = config(by_config.path());
        settings[key] = json!(value);
        write_config(by_config.path(), &settings);

        let mut scaled = tensors(by_weights.path());
        for (block, factor) in factor.into_iter().enumerate() {
            for kind in ["weight", "bias"] {
                let name = format!("transformer.h.{block}.attn.c_attn.{kind}");
                let rows = scaled.get_mut(&name).unwrap().2.chunks_mut(4 * 96);
                for value in rows.flat_map(|row| row[..4 * 32].as_chunks_mut::<4>().0) {
                    *value = (f32::from_le_bytes(*value) * factor).to_le_bytes();
                }
            }
        }
        write(by_weights.path(), &scaled);

        let (a, b) = (logits(by_config.path()), logits(by_weights.path()));
        let plain = logits(Path::new(FIXTURE));
        assert!(a.iter().zip(&b).all(|(a, b)| (a - b).abs() < 1e-5), "{key}");
        assert!(
            a.iter().zip(&plain).any(|(a, b)| (a - b).abs() > 1e-2),
            "{key}"
        );
    }
}

#[test]
fn missing_keys_have_the_defaults_of_transformers() {
    let config: Gpt2Config = serde_json::from_str("{}").unwrap();
    assert_eq!(config, Gpt2Config::default());
    let spelled: Gpt2Config =
        serde_json::from_value(json!({"hidden_size": 32, "num_hidden_layers": 3})).unwrap();
    assert_eq!((spelled.n_embd, spelled.n_layer), (32, 3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn a_damaged_header_never_panics(changes in prop::collection::vec((0..4000usize, any::<u8>()), 1..6)) {
        let folder = copy();
        let path = folder.path().join("model.safetensors");
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in changes {
            bytes[at] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = open(folder.path()) {
            prop_assert!(error.to_string().contains("model.safetensors"));
        }
    }

    #[test]
    fn a_changed_number_in_a_header_never_panics(pick in any::<prop::sample::Index>(), value in any::<u64>(), shift in 0..64u32) {
        let folder = copy();
        let path = folder.path().join("model.safetensors");
        let bytes = fs::read(&path).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header = std::str::from_utf8(&bytes[8..8 + length]).unwrap();
        let numbers: Vec<_> = header.split_inclusive(|c: char| !c.is_ascii_digit()).collect();
        let at = pick.index(numbers.len());
        let changed: String = numbers
            .iter()
            .enumerate()
            .map(|(i, part)| match part.trim_end_matches(|c: char| !c.is_ascii_digit()) {
                digits if i == at && !digits.is_empty() => part.replace(digits, &(value >> shift).to_string()),
                _ => (*part).to_owned(),
            })
            .collect();
        let file = [&(changed.len() as u64).to_le_bytes()[..], changed.as_bytes(), &bytes[8 + length..]].concat();
        fs::write(&path, file).unwrap();
        if let Err(error) = open(folder.path()) {
            prop_assert!(error.to_string().contains("model.safetensors"));
        }
    }

    #[test]
    fn a_changed_config_never_panics(
        key in prop::sample::select(vec![
            "vocab_size", "n_positions", "n_embd", "n_layer", "n_head", "n_inner", "layer_norm_epsilon",
            "activation_function", "tie_word_embeddings", "scale_attn_weights", "model_type", "dtype",
        ]),
        value in prop_oneof![
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            (0..200u64).prop_map(Value::from),
            any::<bool>().prop_map(Value::from),
            "[a-z_]{0,8}".prop_map(Value::from),
            Just(Value::Null),
            Just(json!([1])),
        ],
    ) {
        let folder = copy();
        let mut settings = config(folder.path());
        settings[key] = value;
        write_config(folder.path(), &settings);
        if let Err(error) = open(folder.path()) {
            let text = error.to_string();
            prop_assert!(text.contains("config.json") || text.contains("model.safetensors"));
        }
    }
}
