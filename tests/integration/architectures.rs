//! Every architecture, as checkpoints hold it: the outputs of transformers, and what is saved is what was loaded.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::Module,
    tensor::{Device, Int, Tensor},
};
use safetensors::{Dtype, SafeTensors};
use scalebio::{LayerSampler, Lisa, models::CausalLm};
use serde_json::Value;

use crate::compare::compare;

/// Largest error of logits and losses; gradients may have ten times that, relatively.
const TOLERANCE: f64 = 1e-4;

/// All checkpoints: those made with the project's program, and the variants they leave out.
fn checkpoints() -> Vec<PathBuf> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folders = ["hf", "hf_variants"].map(|set| fs::read_dir(fixtures.join(set)).unwrap());
    let folders = folders
        .into_iter()
        .flatten()
        .map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = folders.collect();
    folders.sort();
    assert_eq!(folders.len(), 7 + 24);
    folders
}

fn open(folder: &Path) -> CausalLm {
    CausalLm::from_pretrained(folder, &Device::flex()).unwrap()
}

/// All tensors of a folder in float32, by name; the bytes, so that they are compared exactly.
fn tensors(folder: &Path) -> BTreeMap<String, (Vec<usize>, Vec<u8>)> {
    let mut tensors = BTreeMap::new();
    for path in files(folder).iter().filter(|path| is_shard(path)) {
        let bytes = fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let data = tensor.data();
            let wide = match tensor.dtype() {
                Dtype::F32 => data.to_vec(),
                Dtype::BF16 => data.chunks(2).flat_map(|b| [0, 0, b[0], b[1]]).collect(),
                Dtype::F16 => data
                    .chunks(2)
                    .map(|b| burn::tensor::f16::from_le_bytes([b[0], b[1]]).to_f32())
                    .flat_map(f32::to_le_bytes)
                    .collect(),
                other => panic!("{other}"),
            };
            let twice = tensors.insert(name.to_owned(), (tensor.shape().to_vec(), wide));
            assert!(twice.is_none(), "{name}");
        }
    }
    tensors
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

fn is_shard(path: &Path) -> bool {
    let name = path.file_name().unwrap().to_string_lossy();
    name.starts_with("model") && name.ends_with(".safetensors")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// config.json without the type of the tensors, which is float32 when we save.
fn settings(folder: &Path) -> Value {
    let mut settings = json(&folder.join("config.json"));
    for key in ["dtype", "torch_dtype"] {
        if let Some(dtype) = settings.get_mut(key) {
            *dtype = "float32".into();
        }
    }
    settings
}

#[test]
fn every_checkpoint_agrees_with_transformers() {
    for folder in checkpoints() {
        let expected = folder.join("expected.safetensors");
        let report = compare(&folder, &expected, &Device::flex()).unwrap();
        assert!(report.within(TOLERANCE), "{}: {report:?}", folder.display());
    }
}

#[test]
fn every_checkpoint_is_saved_as_it_was_loaded() {
    for folder in checkpoints() {
        let copy = tempfile::tempdir().unwrap();
        open(&folder)
            .save_pretrained(copy.path(), u64::MAX)
            .unwrap();
        let mut original = tensors(&folder);
        if folder.ends_with("llama-no-prefix") {
            let with_prefix = |name: String| match name.starts_with("lm_head") {
                true => name,
                false => format!("model.{name}"),
            };
            let named = original
                .into_iter()
                .map(|(name, tensor)| (with_prefix(name), tensor));
            original = named.collect();
        }
        // Not `assert_eq!`, which would print all values.
        assert!(tensors(copy.path()) == original, "{}", folder.display());
        assert_eq!(
            settings(copy.path()),
            settings(&folder),
            "{}",
            folder.display()
        );
        let shards = files(copy.path()).into_iter().filter(|path| is_shard(path));
        assert_eq!(shards.count(), 1);
        assert_eq!(
            open(copy.path()).architecture(),
            open(&folder).architecture()
        );
    }
}

#[test]
fn checkpoints_are_cut_into_files_of_the_size_that_was_asked_for() {
    for folder in checkpoints() {
        let copy = tempfile::tempdir().unwrap();
        let model = open(&folder);
        // Into one folder, so that each cut must remove what the one before has left.
        for (limit, least) in [(8_000, 3), (u64::MAX, 1), (20_000, 2), (0, 10)] {
            model.save_pretrained(copy.path(), limit).unwrap();
            let shards: Vec<_> = files(copy.path())
                .into_iter()
                .filter(|p| is_shard(p))
                .collect();
            assert!(shards.len() >= least, "{shards:?}");
            let index = copy.path().join("model.safetensors.index.json");
            assert_eq!(index.exists(), shards.len() > 1);
            for shard in &shards {
                let bytes = fs::read(shard).unwrap();
                let file = SafeTensors::deserialize(&bytes).unwrap();
                let size: usize = file.iter().map(|(_, tensor)| tensor.data().len()).sum();
                assert!(
                    file.len() == 1 || size as u64 <= limit,
                    "{}",
                    shard.display()
                );
            }
            let again = tempfile::tempdir().unwrap();
            open(copy.path())
                .save_pretrained(again.path(), u64::MAX)
                .unwrap();
            assert!(tensors(again.path()) == tensors(copy.path()));
        }
    }
}

#[test]
fn an_index_is_that_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = folder.join("tests/fixtures/hf_variants/llama-sharded");
    let copy = tempfile::tempdir().unwrap();
    open(&folder).save_pretrained(copy.path(), 6_000).unwrap();
    let index = |folder: &Path| json(&folder.join("model.safetensors.index.json"));
    let (ours, theirs) = (index(copy.path()), index(&folder));
    assert_eq!(ours["metadata"], theirs["metadata"]);
    let names = |index: &Value| {
        let map = index["weight_map"].as_object().unwrap().clone();
        map.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(names(&ours), names(&theirs));
    let file = ours["weight_map"]["model.norm.weight"].as_str().unwrap();
    assert!(
        file.starts_with("model-000") && file.ends_with(".safetensors"),
        "{file}"
    );
}

#[test]
fn files_of_the_tokenizer_go_with_the_model() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(
            fixtures.join("stories260K").join(name),
            folder.path().join(name),
        )
        .unwrap();
    }
    for (name, text) in [
        ("tokenizer_config.json", "{}"),
        ("chat_template.jinja", "{{ messages }}"),
        ("generation_config.json", "{\"eos_token_id\": 2}"),
        ("README.md", "not a part of the model"),
    ] {
        fs::write(folder.path().join(name), text).unwrap();
    }
    let copy = tempfile::tempdir().unwrap();
    open(folder.path())
        .save_pretrained(copy.path(), u64::MAX)
        .unwrap();
    let names: Vec<_> = files(copy.path())
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let all = [
        "chat_template.jinja",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ];
    assert_eq!(names, all);
    for name in all
        .iter()
        .filter(|name| !["config.json", "model.safetensors"].contains(name))
    {
        let read = |folder: &Path| fs::read(folder.join(name)).unwrap();
        assert!(read(copy.path()) == read(folder.path()), "{name}");
    }
    // Into the folder that it came from.
    open(folder.path())
        .save_pretrained(folder.path(), u64::MAX)
        .unwrap();
    assert!(tensors(folder.path()) == tensors(copy.path()));
}

#[test]
fn lisa_finds_the_blocks_of_every_architecture() {
    for folder in checkpoints() {
        let model = open(&folder);
        let config = json(&folder.join("config.json"));
        let blocks = config.get("num_hidden_layers").or(config.get("n_layer"));
        let mut lisa = Lisa::over(&model, &model.blocks_path()).unwrap().active(1);
        assert_eq!(lisa.blocks() as u64, blocks.unwrap().as_u64().unwrap());
        assert!(lisa.sample(0).is_some() && model.num_params() > 0);
    }
}

#[test]
fn padding_changes_no_logits_of_any_architecture() {
    let device = Device::flex();
    let logits = |model: &CausalLm, ids: [i64; 9], mask: [i64; 9]| -> Vec<f32> {
        let tensor = |row: [i64; 9]| Tensor::<2, Int>::from_data([row], &device);
        let logits = model.logits(tensor(ids), tensor(mask));
        let logits: Vec<f32> = logits.into_data().try_into_vec().unwrap();
        logits[..5 * model.vocabulary_size()].to_vec()
    };
    for folder in checkpoints() {
        let model = open(&folder);
        let whole = logits(&model, [3, 1, 4, 1, 5, 9, 2, 6, 5], [1; 9]);
        let padded = logits(
            &model,
            [3, 1, 4, 1, 5, 0, 0, 0, 0],
            [1, 1, 1, 1, 1, 0, 0, 0, 0],
        );
        let close = whole.iter().zip(&padded).all(|(a, b)| (a - b).abs() < 1e-5);
        assert!(close, "{}", folder.display());
    }
}
