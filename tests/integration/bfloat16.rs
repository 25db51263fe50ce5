//! Models in bfloat16: every architecture computes what it computes in float32 up to rounding, files keep their
//! numbers, and source weights are learned as in float32.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use burn::{
    module::{Module, ModuleVisitor, Param},
    tensor::{DType, Device, Gradients, Int, Tensor, TensorData},
};
use safetensors::{Dtype as Stored, SafeTensors};
use scalebio::{
    Error,
    models::{CausalLm, Dtype, Gpt2Config, token_losses},
    train::{EvaluateConfig, Experiment, FinetuneConfig, Finetuning, ReweightConfig, evaluate},
};
use serde_json::{Value, json};

fn fixture(name: &str) -> PathBuf {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    fixtures.join(name)
}

/// One checkpoint of each architecture.
fn checkpoints() -> Vec<PathBuf> {
    let folders = fs::read_dir(fixture("hf")).unwrap();
    let mut folders: Vec<_> = folders.map(|entry| entry.unwrap().path()).collect();
    // Rotary scalings, strong caps, a window, biases, serial residuals.
    let variants = [
        "gemma-strong-caps",
        "llama-biased",
        "llama-llama3",
        "llama-linear",
        "mistral-window",
        "neox-serial",
        "qwen-untied-bf16",
    ];
    folders.extend(variants.map(|name| fixture("hf_variants").join(name)));
    folders.sort();
    assert_eq!(folders.len(), 7 + 7);
    folders
}

fn open(folder: &Path, dtype: Dtype, device: &Device) -> CausalLm {
    CausalLm::from_pretrained_as(folder, device, dtype).unwrap()
}

/// Ids, mask and labels of a checkpoint's reference values.
fn batch(folder: &Path, device: &Device) -> [Tensor<2, Int>; 3] {
    let bytes = fs::read(folder.join("expected.safetensors")).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    ["input_ids", "attention_mask", "labels"].map(|name| {
        let tensor = file.tensor(name).unwrap();
        let numbers = tensor.data().as_chunks::<8>().0.iter();
        let numbers: Vec<i64> = numbers.map(|b| i64::from_le_bytes(*b)).collect();
        Tensor::from_data(TensorData::new(numbers, tensor.shape()), device)
    })
}

fn numbers<const D: usize>(tensor: Tensor<D>) -> Vec<f64> {
    tensor.into_data().iter::<f64>().collect()
}

/// What a model makes of a batch: logits of tokens, losses of tokens, losses of samples, gradients by parameter.
struct Outputs {
    logits: Vec<f64>,
    losses: Vec<f64>,
    sample_losses: Vec<f64>,
    gradients: BTreeMap<String, Vec<f64>>,
}

impl Outputs {
    fn of(folder: &Path, dtype: Dtype) -> Self {
        struct Walk<'a>(
            Vec<String>,
            &'a Gradients,
            DType,
            BTreeMap<String, Vec<f64>>,
        );

        impl ModuleVisitor for Walk<'_> {
            fn enter_module(&mut self, name: &str, _container: &str) {
                self.0.push(name.to_owned());
            }

            fn exit_module(&mut self, _name: &str, _container: &str) {
                self.0.pop();
            }

            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                assert_eq!(param.val().dtype(), self.2);
                let gradient = param.val().grad(self.1).unwrap();
                assert_eq!(gradient.dtype(), self.2);
                self.3.insert(self.0.join("."), numbers(gradient));
            }
        }

        let device = Device::flex().autodiff();
        let [ids, mask, labels] = batch(folder, &device);
        let model = open(folder, dtype, &device);
        let logits = model.logits(ids.clone(), mask.clone());
        let losses = token_losses(logits.clone(), labels.clone());
        let sample_losses = model.sample_losses(ids, mask.clone(), labels);
        assert_eq!(sample_losses.dtype(), DType::F32);
        let gradients = sample_losses.clone().mean().backward();
        let mut walk = Walk(Vec::new(), &gradients, dtype.into(), BTreeMap::new());
        model.visit(&mut walk);
        // Logits of padding have no meaning.
        let shown = mask.float().unsqueeze_dim::<3>(2).cast(logits.dtype());
        Self {
            logits: numbers(logits * shown),
            losses: numbers(losses),
            sample_losses: numbers(sample_losses),
            gradients: walk.3,
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn norm(a: &[f64]) -> f64 {
    dot(a, a).sqrt()
}

fn largest_difference(a: &[f64], b: &[f64]) -> f64 {
    let differences = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    differences.fold(0.0, f64::max)
}

/// On the seven folders of `hf` torch's own bfloat16 (2.11, eager attention) is off by 0.5 % to 1.4 % of the logits' norm,
/// up to 0.025 in a token's loss, and 0.9989 in the cosine of a parameter's gradient; we by 0.6 % to 1.4 %, 0.024 and 0.9991.
#[test]
fn every_architecture_computes_in_bfloat16_what_it_computes_in_float32() {
    for folder in checkpoints() {
        let wide = Outputs::of(&folder, Dtype::Float32);
        let narrow = Outputs::of(&folder, Dtype::Bfloat16);

        let differences: Vec<f64> = wide
            .logits
            .iter()
            .zip(&narrow.logits)
            .map(|(a, b)| a - b)
            .collect();
        let relative = norm(&differences) / norm(&wide.logits);
        let nll = largest_difference(&wide.losses, &narrow.losses);
        let sample = largest_difference(&wide.sample_losses, &narrow.sample_losses);
        let name = folder.display();
        assert!(relative <= 2e-2, "{name}: logits differ by {relative}");
        assert!(nll <= 4e-2, "{name}: a token's loss differs by {nll}");
        assert!(
            sample <= 2e-2,
            "{name}: a sample's loss differs by {sample}"
        );
        for (path, a) in &wide.gradients {
            let b = &narrow.gradients[path];
            let cosine = dot(a, b) / (norm(a) * norm(b));
            assert!(
                norm(a) == 0.0 || cosine > 0.99,
                "{name}: {cosine} at {path}"
            );
        }
    }
}

/// Type, shape and bytes of all tensors of a folder.
fn tensors(folder: &Path) -> BTreeMap<String, (Stored, Vec<usize>, Vec<u8>)> {
    let entries = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let is_shard = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_string_lossy();
        name.starts_with("model") && name.ends_with(".safetensors")
    };
    let mut tensors = BTreeMap::new();
    for path in entries.filter(is_shard) {
        let bytes = fs::read(path).unwrap();
        for (name, tensor) in SafeTensors::deserialize(&bytes).unwrap().iter() {
            let content = (
                tensor.dtype(),
                tensor.shape().to_vec(),
                tensor.data().to_vec(),
            );
            tensors.insert(name.to_owned(), content);
        }
    }
    tensors
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_bfloat16_file_is_saved_as_it_was_loaded() {
    for name in ["llama-bf16", "qwen-untied-bf16"] {
        let folder = fixture("hf_variants").join(name);
        let copy = tempfile::tempdir().unwrap();
        let model = open(&folder, Dtype::Bfloat16, &Device::flex());
        for shard in [u64::MAX, 10_000] {
            model.save_pretrained(copy.path(), shard).unwrap();
            assert!(tensors(copy.path()) == tensors(&folder), "{name}, {shard}");
            let settings = |folder: &Path| json(&folder.join("config.json"));
            assert_eq!(settings(copy.path()), settings(&folder), "{name}");
        }
        let index = json(&copy.path().join("model.safetensors.index.json"));
        let bytes = tensors(&folder)
            .values()
            .map(|(_, _, data)| data.len())
            .sum::<usize>();
        assert_eq!(index["metadata"]["total_size"], bytes);
        assert_eq!(index["metadata"]["total_parameters"], bytes / 2);
    }
}

/// Rounded once, whether when it is read or afterwards; and the file then says what it holds, whatever it said before.
#[test]
fn a_float32_file_can_be_rounded_to_bfloat16() {
    for folder in checkpoints() {
        let [read, cast] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let device = Device::flex();
        let model = open(&folder, Dtype::Bfloat16, &device);
        model.save_pretrained(read.path(), u64::MAX).unwrap();
        let model = open(&folder, Dtype::Float32, &device)
            .cast(Dtype::Bfloat16)
            .unwrap();
        model.save_pretrained(cast.path(), u64::MAX).unwrap();
        let rounded = tensors(read.path());
        assert!(rounded.values().all(|(dtype, _, _)| *dtype == Stored::BF16));
        assert!(rounded == tensors(cast.path()), "{}", folder.display());
        let settings = json(&read.path().join("config.json"));
        let said = ["dtype", "torch_dtype"].map(|key| settings.get(key));
        assert!(said.into_iter().flatten().all(|name| name == "bfloat16"));
        assert!(said.into_iter().any(|name| name.is_some()), "{settings}");
        // The same model, and again in float32.
        let again = open(read.path(), Dtype::Bfloat16, &device)
            .cast(Dtype::Float32)
            .unwrap();
        let wide = tempfile::tempdir().unwrap();
        again.save_pretrained(wide.path(), u64::MAX).unwrap();
        assert!(
            tensors(wide.path())
                .values()
                .all(|(dtype, _, _)| *dtype == Stored::F32)
        );
        for (name, (_, shape, bytes)) in tensors(wide.path()) {
            let upper: Vec<u8> = bytes.chunks(4).flat_map(|b| [b[2], b[3]]).collect();
            assert!((Stored::BF16, shape, upper) == rounded[&name], "{name}");
        }
    }
}

#[test]
fn a_device_without_bfloat16_is_an_error() {
    let [_, ndarray] = crate::zoo::devices();
    let folder = fixture("hf/gpt2");
    let model = CausalLm::from_pretrained(&folder, &ndarray).unwrap();
    let config = ReweightConfig {
        dtype: Dtype::Bfloat16,
        device: "ndarray".to_owned(),
        ..ReweightConfig::new("no/such/folder")
    };
    let finetuning = FinetuneConfig {
        dtype: Dtype::Bfloat16,
        device: "ndarray".to_owned(),
        ..FinetuneConfig::new("no/such/file")
    };
    let evaluation = EvaluateConfig {
        dtype: Dtype::Bfloat16,
        device: "ndarray".to_owned(),
        ..EvaluateConfig::new(&folder, ["no/such/file".into()])
    };
    let errors = [
        CausalLm::from_pretrained_as(&folder, &ndarray, Dtype::Bfloat16).unwrap_err(),
        model.cast(Dtype::Bfloat16).unwrap_err(),
        Experiment::open(config).unwrap_err(),
        Finetuning::start(finetuning, "no/such/run").unwrap_err(),
        evaluate(&evaluation).unwrap_err(),
    ];
    for error in errors {
        assert!(
            matches!(error, Error::Setting { name: "dtype", .. }),
            "{error:?}"
        );
        assert!(error.to_string().contains("bfloat16"), "{error}");
    }
}

#[test]
fn a_cast_model_stays_trainable_or_frozen() {
    #[derive(Default)]
    struct Trainable(Vec<bool>);

    impl ModuleVisitor for Trainable {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            assert_eq!(param.val().dtype(), DType::BF16);
            self.0.push(param.val().is_require_grad());
        }
    }
    let trainable = |model: &CausalLm| {
        let mut visitor = Trainable::default();
        model.visit(&mut visitor);
        visitor.0
    };
    let config = Gpt2Config::new(11, 8, 8, 1, 2);
    let model = || CausalLm::from(config.init(0, &Device::flex().autodiff()).unwrap());
    assert!(
        trainable(&model().cast(Dtype::Bfloat16).unwrap())
            .into_iter()
            .all(|is| is)
    );
    let frozen = model().no_grad().cast(Dtype::Bfloat16).unwrap();
    assert!(trainable(&frozen).into_iter().all(|is| !is));
}

#[test]
fn types_have_the_names_of_transformers() {
    for (name, short, dtype) in [
        ("float32", "f32", Dtype::Float32),
        ("bfloat16", "bf16", Dtype::Bfloat16),
    ] {
        assert_eq!(name.parse::<Dtype>().unwrap(), dtype);
        assert_eq!(short.parse::<Dtype>().unwrap(), dtype);
        assert_eq!(json!(dtype), json!(name));
        let mut config = json!(ReweightConfig::new("data"));
        assert_eq!(config["dtype"], "float32");
        config["dtype"] = json!(short);
        let config: ReweightConfig = serde_json::from_value(config).unwrap();
        assert_eq!(config.dtype, dtype);
    }
    let refused = "int8".parse::<Dtype>().unwrap_err();
    assert!(
        matches!(refused, Error::Setting { name: "dtype", .. }),
        "{refused:?}"
    );
    for part in ["`int8`", "float32", "bfloat16"] {
        assert!(refused.to_string().contains(part), "{refused}");
    }
    let mut config = json!(ReweightConfig::new("data"));
    config["dtype"] = json!("float16");
    let refused = serde_json::from_value::<ReweightConfig>(config.clone()).unwrap_err();
    assert!(refused.to_string().contains("`float16`"), "{refused}");
    // A config.json of a run from before there was a choice.
    config.as_object_mut().unwrap().remove("dtype");
    let config: ReweightConfig = serde_json::from_value(config).unwrap();
    assert_eq!(config.dtype, Dtype::Float32);
}

/// Three sources of which one is like the validation set; the weights that a run learns, in the order of their names.
fn learned(data: &Path, model: Option<PathBuf>, dtype: Dtype) -> Vec<f64> {
    let out = tempfile::tempdir().unwrap();
    let config = ReweightConfig {
        model,
        dtype,
        steps: 12,
        batch: 6,
        max_length: 24,
        lr_lower: 3e-3,
        lr_upper: 0.1,
        lisa_blocks: Some(1),
        lisa_period: 3,
        ..ReweightConfig::new(data)
    };
    let experiment = Experiment::open(config).unwrap();
    let mut run = experiment.reweight(out.path().join("run")).unwrap();
    for step in run.by_ref() {
        step.unwrap();
    }
    let saved = run.save_model(&experiment).unwrap();
    let stored = tensors(&saved);
    let expected = match dtype {
        Dtype::Float32 => Stored::F32,
        Dtype::Bfloat16 => Stored::BF16,
    };
    assert!(stored.values().all(|(dtype, _, _)| *dtype == expected));
    assert_eq!(json(&saved.join("config.json"))["dtype"], json!(dtype));
    assert_eq!(
        json(&out.path().join("run/config.json"))["dtype"],
        json!(dtype)
    );
    CausalLm::from_pretrained(&saved, &Device::flex()).unwrap();
    run.report()
        .sources
        .iter()
        .map(|source| source.weight)
        .collect()
}

#[test]
fn a_run_in_bfloat16_learns_the_weights_of_one_in_float32() {
    let data = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let records = (0..12).map(|i| format!("{}\n", json!({"text": format!("{text} {i}")})));
        fs::write(data.path().join(name), records.collect::<String>()).unwrap();
    };
    write("val.jsonl", "Once upon a time there was a little dog named");
    write("train_dogs.jsonl", "One day the little dog was happy and");
    write("train_code.jsonl", "def f(x): return x ** 2 % 7 ==");
    write(
        "train_latin.jsonl",
        "lorem ipsum dolor sit amet consectetur",
    );
    for model in [Some(fixture("stories260K")), None] {
        let wide = learned(data.path(), model.clone(), Dtype::Float32);
        let narrow = learned(data.path(), model.clone(), Dtype::Bfloat16);
        let difference = largest_difference(&wide, &narrow);
        assert!(difference < 0.02, "{model:?}: {wide:?} and {narrow:?}");
        let farthest = wide
            .iter()
            .map(|p| (p - 1.0 / 3.0).abs())
            .fold(0.0, f64::max);
        assert!(farthest > 0.04, "the weights have not moved: {wide:?}");
    }
}
