//! Checkpoints of all architectures that are damaged or ask for what is not supported: one clear error, never a panic.

use std::fs;
use std::path::{Path, PathBuf};

use burn::tensor::Device;
use proptest::prelude::*;
use scalebio::Error;
use scalebio::models::CausalLm;
use serde_json::{Value, json};
use tempfile::TempDir;

/// One small checkpoint of each architecture, and one in shards.
const ARCHITECTURES: [&str; 7] = [
    "hf/gpt2",
    "hf_variants/neox-legacy",
    "hf_variants/llama-llama3",
    "hf_variants/mistral-window",
    "hf_variants/qwen-window",
    "hf_variants/gemma-legacy",
    "hf_variants/llama-f16-sharded-legacy",
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

/// A copy to damage.
fn copy(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(fixture(name)).unwrap() {
        let path = entry.unwrap().path();
        if !path.ends_with("expected.safetensors") {
            fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    folder
}

fn config(folder: &Path) -> Value {
    serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap()
}

fn write_config(folder: &Path, config: &Value) {
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// The message of the one error, which begins with the file.
fn refused(folder: &Path, file: &str) -> String {
    let error = CausalLm::from_pretrained(folder, &Device::flex()).unwrap_err();
    assert!(
        matches!(error, Error::File { .. } | Error::Io { .. }),
        "{error:?}"
    );
    let text = error.to_string();
    let path = folder.join(file).display().to_string();
    assert!(text.starts_with(&path), "{text}");
    text
}

/// The first file of tensors.
fn tensors(folder: &Path) -> PathBuf {
    let files = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_tensors = |path: &PathBuf| path.extension().is_some_and(|e| e == "safetensors");
    files.filter(is_tensors).min().unwrap()
}

#[test]
fn options_that_would_change_the_result_are_refused_by_name() {
    let rope = |rope: Value| {
        let mut all = json!({"rope_type": "default", "rope_theta": 10000.0});
        all.as_object_mut()
            .unwrap()
            .extend(rope.as_object().unwrap().clone());
        all
    };
    let cases = [
        ("hf/llama3", "model_type", json!("gpt_oss"), "gpt_oss"),
        ("hf/llama3", "model_type", Value::Null, "model_type"),
        ("hf/llama3", "hidden_act", json!("quick_gelu"), "quick_gelu"),
        (
            "hf/llama3",
            "quantization_config",
            json!({"bits": 4}),
            "quantization_config",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"rope_type": "yarn", "factor": 4.0})),
            "yarn",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"rope_type": "dynamic"})),
            "dynamic",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"rope_type": "linear"})),
            "factor",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"rope_type": "llama3", "factor": 8.0})),
            "low_freq_factor",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"rope_theta": -1.0})),
            "rope_theta",
        ),
        (
            "hf/llama3",
            "rope_parameters",
            rope(json!({"partial_rotary_factor": 0.5})),
            "turn as a whole",
        ),
        (
            "hf/llama3",
            "rope_scaling",
            json!({"type": "longrope"}),
            "longrope",
        ),
        (
            "hf/llama3",
            "num_key_value_heads",
            json!(3),
            "num_key_value_heads",
        ),
        ("hf/llama3", "head_dim", json!(7), "even number"),
        ("hf/llama3", "hidden_size", json!(0), "hidden_size"),
        ("hf/llama3", "rms_norm_eps", json!(0.0), "rms_norm_eps"),
        ("hf/llama3", "pad_token_id", json!(101), "pad_token_id"),
        ("hf/gpt_neox", "hidden_act", json!("mish"), "mish"),
        (
            "hf/gpt_neox",
            "num_attention_heads",
            json!(5),
            "num_attention_heads",
        ),
        (
            "hf/gpt_neox",
            "use_parallel_residual",
            json!("yes"),
            "use_parallel_residual",
        ),
        (
            "hf/qwen2",
            "layer_types",
            json!(["full_attention"]),
            "layer_types",
        ),
        (
            "hf/qwen2",
            "layer_types",
            json!(["full_attention", "linear_attention", "full_attention"]),
            "linear_attention",
        ),
        (
            "hf/qwen2",
            "layer_types",
            json!(["full_attention", "sliding_attention", "full_attention"]),
            "sliding_window",
        ),
        ("hf/qwen2", "use_mrope", json!(true), "use_mrope"),
        (
            "hf/gemma2",
            "use_bidirectional_attention",
            json!(true),
            "use_bidirectional_attention",
        ),
        ("hf/gemma2", "sliding_window", Value::Null, "sliding_window"),
        (
            "hf/gemma2",
            "query_pre_attn_scalar",
            json!(0),
            "query_pre_attn_scalar",
        ),
        (
            "hf/gemma2",
            "attn_logit_softcapping",
            json!(-1.0),
            "attn_logit_softcapping",
        ),
        (
            "hf/gemma2",
            "num_hidden_layers",
            json!(u64::MAX),
            "num_hidden_layers",
        ),
    ];
    for (name, key, value, shown) in cases {
        let folder = copy(name);
        let mut settings = config(folder.path());
        settings[key] = value;
        write_config(folder.path(), &settings);
        let text = refused(folder.path(), "config.json");
        assert!(text.contains(shown), "{key}: {text}");
    }
}

#[test]
fn missing_and_damaged_shards_are_named() {
    const SHARDED: &str = "hf_variants/llama-f16-sharded-legacy";
    const INDEX: &str = "model.safetensors.index.json";
    let second = "model-00002-of-00005.safetensors";

    let folder = copy(SHARDED);
    fs::remove_file(folder.path().join(second)).unwrap();
    fs::remove_file(folder.path().join("model-00004-of-00005.safetensors")).unwrap();
    let text = refused(folder.path(), INDEX);
    assert!(
        text.contains(second) && text.contains("model-00004"),
        "{text}"
    );

    let folder = copy(SHARDED);
    let path = folder.path().join(second);
    let bytes = fs::read(&path).unwrap();
    fs::write(&path, &bytes[..bytes.len() - 3]).unwrap();
    assert!(refused(folder.path(), second).contains("not a complete safetensors file"));

    let folder = copy(SHARDED);
    let path = folder.path().join(INDEX);
    let index = fs::read_to_string(&path).unwrap();
    fs::write(&path, index.replace(second, "../model.safetensors")).unwrap();
    assert!(refused(folder.path(), INDEX).contains("its own folder"));
    fs::write(
        &path,
        index.replacen(second, "model-00001-of-00005.safetensors", 1),
    )
    .unwrap();
    assert!(refused(folder.path(), INDEX).contains("does not hold it"));
    fs::write(&path, "{}").unwrap();
    assert!(refused(folder.path(), INDEX).contains("weight_map"));
    fs::write(&path, &index[..index.len() / 2]).unwrap();
    refused(folder.path(), INDEX);
}

#[test]
fn a_head_that_is_not_the_embedding_it_should_be_is_refused() {
    // An untied checkpoint whose config says that it is tied.
    let folder = copy("hf/llama3");
    let mut settings = config(folder.path());
    settings["tie_word_embeddings"] = json!(true);
    write_config(folder.path(), &settings);
    let text = refused(folder.path(), "model.safetensors");
    assert!(
        text.contains("lm_head.weight") && text.contains("tie_word_embeddings"),
        "{text}"
    );
}

#[test]
fn values_that_are_not_finite_are_refused_in_every_architecture() {
    for name in ARCHITECTURES {
        let folder = copy(name);
        let path = tensors(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        let end = bytes.len();
        bytes[end - 4..].fill(0xff);
        fs::write(&path, bytes).unwrap();
        let text = refused(folder.path(), path.file_name().unwrap().to_str().unwrap());
        assert!(text.contains("holds NaN"), "{text}");
    }
}

fn any_value() -> impl Strategy<Value = Value> {
    let rope_type = prop::sample::select(vec!["default", "linear", "llama3", "yarn", ""]);
    let number = prop_oneof![any::<f64>(), 0.0..10.0, Just(1e300), Just(0.0)];
    let rope = (rope_type, prop::array::uniform6(number)).prop_map(|(kind, n)| {
        json!({
            "rope_type": kind, "rope_theta": n[0], "factor": n[1], "low_freq_factor": n[2],
            "high_freq_factor": n[3], "original_max_position_embeddings": n[4],
            "partial_rotary_factor": n[5],
        })
    });
    prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (0..200u64).prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        "[a-z_]{0,8}".prop_map(Value::from),
        Just(Value::Null),
        Just(json!([])),
        Just(json!([1, "full_attention", null])),
        Just(json!([
            "sliding_attention",
            "sliding_attention",
            "full_attention"
        ])),
        rope,
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn a_changed_config_never_panics(
        name in prop::sample::select(ARCHITECTURES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any_value()), 1..3),
        added in prop::sample::select(vec!["rope_parameters", "rope_scaling", "layer_types", "pad_token_id", "head_dim"]),
        value in any_value(),
    ) {
        let folder = copy(name);
        let mut settings = config(folder.path());
        let keys: Vec<String> = settings.as_object().unwrap().keys().cloned().collect();
        for (key, value) in changes {
            settings[key.get(&keys)] = value;
        }
        settings[added] = value;
        write_config(folder.path(), &settings);
        match CausalLm::from_pretrained(folder.path(), &Device::flex()) {
            Err(error) => prop_assert!(error.to_string().starts_with(&folder.path().display().to_string())),
            // What opens must run.
            Ok(model) => {
                let ids = burn::tensor::Tensor::from_data([[1, 2, 3]], &Device::flex());
                let [_, length, vocabulary] = model.logits(ids.clone(), ids.ones_like()).dims();
                prop_assert_eq!((length, vocabulary), (3, model.vocabulary_size()));
            }
        }
    }

    #[test]
    fn a_damaged_header_never_panics(
        name in prop::sample::select(ARCHITECTURES.to_vec()),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let folder = copy(name);
        let path = tensors(folder.path());
        let mut bytes = fs::read(&path).unwrap();
        let header = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        for (at, value) in changes {
            bytes[at.index(header)] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = CausalLm::from_pretrained(folder.path(), &Device::flex()) {
            prop_assert!(error.to_string().contains(".safetensors"));
        }
    }

    #[test]
    fn a_changed_index_never_panics(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let folder = copy("hf_variants/llama-f16-sharded-legacy");
        let path = folder.path().join("model.safetensors.index.json");
        let mut bytes = fs::read(&path).unwrap();
        for (at, value) in changes {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        fs::write(&path, bytes).unwrap();
        if let Err(error) = CausalLm::from_pretrained(folder.path(), &Device::flex()) {
            prop_assert!(error.to_string().contains("model"));
        }
    }
}
