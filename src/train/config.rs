//! The settings of a run.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::placement::PlacementKind;
use super::stability::Stability;
use crate::models::{Dtype, Offloading, one_tape};
use crate::solver::{ScaleBio, Update};
use crate::{Error, Result};

/// Which optimizer moves all three variables.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OptimizerKind {
    /// [`Update::adamw`].
    #[default]
    AdamW,
    /// [`Update::sgd`].
    Sgd,
}

/// Everything that determines a run. The defaults are those of the example `reweight`: a small GPT-2 from
/// scratch (width 128, 2 blocks, 4 heads).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReweightConfig {
    /// Folder with `train_<source>`, `val` and possibly `test` files; see [`Corpus`](crate::data::Corpus).
    pub data: PathBuf,
    /// Hugging Face folder of the base model. Default: a small GPT-2 with random weights.
    pub model: Option<PathBuf>,
    /// In which floating type the model and its auxiliary copy are held and computed; a run in bfloat16 also saves its
    /// model so. Default: float32.
    #[serde(default)]
    pub dtype: Dtype,
    /// `tokenizer.json` to use. Default: that of the model's folder; without a model, one trained on the sources.
    pub tokenizer: Option<PathBuf>,
    /// Steps of the run, at least 1; the length of the cosine schedules. Default: 120.
    pub steps: usize,
    /// Training samples of a step, and as many of validation, or all if there are fewer. Default: 28.
    pub batch: usize,
    /// Samples of a micro-batch. Default: the whole batch.
    pub micro_batch: Option<usize>,
    /// Longest sample, in tokens. Default: 64.
    pub max_length: usize,
    /// The penalty. Default: 10.
    pub alpha: f64,
    /// Learning rate of the model and its auxiliary copy, on a cosine with 3 % warm-up. Default: 3e-3.
    pub lr_lower: f64,
    /// Learning rate of the source logits, on a cosine. Default: 4e-2.
    pub lr_upper: f64,
    /// The optimizer of all three variables. Default: AdamW.
    pub optimizer: OptimizerKind,
    /// Clipping of the model's gradients at this global norm times the penalty. Default: 1.
    pub clip: Option<f64>,
    /// Blocks that LISA trains at a time. Default: no LISA, all blocks train.
    pub lisa_blocks: Option<usize>,
    /// Steps between two draws of LISA. Default: 20.
    pub lisa_period: usize,
    /// Seed of the initial values and of all draws. Default: 0.
    pub seed: u64,
    /// Whether gradients are computed block by block; see [`Differentiation`](crate::models::Differentiation).
    /// Default: with LISA, keeping tapes that are small beside embeddings and head.
    #[serde(default)]
    pub blockwise: Option<bool>,
    /// Whether `u` and `w` are differentiated at the same time; see [`Run::in_parallel`](crate::Run::in_parallel).
    /// Default: no.
    #[serde(default)]
    pub parallel: bool,
    /// Where to compute; see [`device`](crate::device). Default: `flex`.
    pub device: String,
    /// Several devices in place of `device`, each once. Default: none.
    #[serde(default)]
    pub devices: Vec<String>,
    /// Which part of `devices` is this process's, and of how many: for several processes on one machine. Not saved. Default:
    /// all.
    #[serde(skip)]
    pub device_share: Option<(usize, usize)>,
    /// How several devices are used. Default: what [`MemoryPlan::place`](crate::models::MemoryPlan::place) finds.
    #[serde(default)]
    pub placement: Option<PlacementKind>,
    /// Gigabytes (1e9 bytes) of the smallest of several devices, to choose the placement by. Default: all fits.
    #[serde(default)]
    pub device_memory: Option<f64>,
    /// Steps between two checkpoints, at least 1. Default: by time only.
    #[serde(default)]
    pub checkpoint_steps: Option<usize>,
    /// Minutes between two checkpoints, greater than 0; the first step that ends later writes one. `None`: by steps only, or
    /// never. Default: 15, which is what an end of the process without notice costs at most.
    #[serde(default = "checkpoint_minutes")]
    pub checkpoint_minutes: Option<f64>,
    /// What waits in the memory of the host (the device `flex`) beside the device that computes: it takes
    /// `lisa_blocks`, and gradients that are not on one tape; see
    /// [`CausalLm::offload`](crate::models::CausalLm::offload). Results are the same up to rounding. Default: nothing.
    #[serde(default)]
    pub offload: Option<Offloading>,
    /// Whether the samples of the sources stay in their files and are read as they are drawn; the results are the same. See
    /// [`Source::stream`](crate::data::Source::stream). Default: if the files have more than 256 MiB together.
    #[serde(default)]
    pub stream: Option<bool>,
    /// The folder in which the indices of streamed sources are kept from one start to the next. Default: nowhere; the program
    /// takes `index` beside the folder of the run. Not in config.json.
    #[serde(skip)]
    pub index: Option<PathBuf>,
    /// When the run stops, what the weights are pulled to, their floor and average. Default: nothing of it.
    #[serde(flatten)]
    pub stability: Stability,
}

fn checkpoint_minutes() -> Option<f64> {
    Some(15.0)
}

impl ReweightConfig {
    /// The defaults for a folder of data.
    pub fn new(data: impl Into<PathBuf>) -> Self {
        Self {
            data: data.into(),
            model: None,
            dtype: Dtype::default(),
            tokenizer: None,
            steps: 120,
            batch: 28,
            micro_batch: None,
            max_length: 64,
            alpha: 10.0,
            lr_lower: 3e-3,
            lr_upper: 4e-2,
            optimizer: OptimizerKind::default(),
            clip: Some(1.0),
            lisa_blocks: None,
            lisa_period: 20,
            seed: 0,
            blockwise: None,
            parallel: false,
            device: "flex".to_owned(),
            devices: Vec::new(),
            device_share: None,
            placement: None,
            device_memory: None,
            checkpoint_steps: None,
            checkpoint_minutes: checkpoint_minutes(),
            offload: None,
            stream: None,
            index: None,
            stability: Stability::default(),
        }
    }

    /// The names of the devices: `devices`, or `device` alone. Of several processes on one machine, each has an equal part
    /// of them, if there is one; else they share all.
    pub fn device_names(&self) -> Vec<&str> {
        let all: Vec<&str> = match self.devices.as_slice() {
            [] => vec![&self.device],
            devices => devices.iter().map(String::as_str).collect(),
        };
        match self.device_share {
            Some((index, of)) if of > 0 && index < of && all.len().is_multiple_of(of) => {
                let part = all.len() / of;
                all[index * part..(index + 1) * part].to_vec()
            }
            _ => all,
        }
    }

    /// Reads the settings of a run from the `config.json` in its folder.
    ///
    /// # Errors
    ///
    /// [`Error::Io`] or [`Error::File`] for a file that cannot be read or is not of this form.
    pub fn read(run: impl AsRef<Path>) -> Result<Self> {
        let path = run.as_ref().join("config.json");
        let text = fs::read_to_string(&path).map_err(|error| Error::io(&path, error))?;
        let mut config: Self =
            serde_json::from_str(&text).map_err(|error| Error::file(&path, error))?;
        // serde_json may miss the last bit of a number with many digits; Rust does not.
        let exact = |name: &str| -> Option<f64> {
            let (_, after) = text.split_once(&format!("\"{name}\":"))?;
            after.split([',', '}']).next()?.trim().parse().ok()
        };
        for (name, value) in [
            ("alpha", &mut config.alpha),
            ("lr_lower", &mut config.lr_lower),
            ("lr_upper", &mut config.lr_upper),
        ] {
            *value = exact(name).unwrap_or(*value);
        }
        config.clip = config.clip.map(|clip| exact("clip").unwrap_or(clip));
        Ok(config)
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.steps == 0 {
            return Err(Error::setting(
                "steps",
                0,
                "at least 1",
                "the example takes 120",
            ));
        }
        if self.checkpoint_steps == Some(0) {
            return Err(Error::setting(
                "checkpoint-steps",
                0,
                "at least 1",
                "leave it out for checkpoints by time",
            ));
        }
        if let Some(minutes) = self.checkpoint_minutes
            && (minutes.is_nan() || minutes <= 0.0)
        {
            return Err(Error::setting(
                "checkpoint-minutes",
                minutes,
                "greater than 0",
                "without any, the run has checkpoints by steps or none",
            ));
        }
        if let Some(offload) = self.offload {
            if self.lisa_blocks.is_none() {
                return Err(Error::setting(
                    "offload",
                    format!("{offload} without lisa-blocks"),
                    "a run in which blocks are frozen",
                    "set lisa-blocks, the number of blocks that train at a time",
                ));
            }
            if self.blockwise == Some(false) {
                return Err(one_tape());
            }
        }
        self.stability.validate(self.steps)?;
        self.lower()
            .validate("learning rate of the model (lr-lower)")?;
        self.upper()
            .validate("learning rate of the source weights (lr-upper)")?;
        // Everything that a run checks at its start, before the data are read.
        self.method().validate()
    }

    /// The method, but for its layers.
    pub(super) fn method(&self) -> ScaleBio {
        let method = ScaleBio::new(self.upper(), self.lower()).penalty(self.alpha);
        match self.clip {
            Some(norm) => method.clip(norm),
            None => method,
        }
    }

    /// The update of `u` and `w`.
    pub(super) fn lower(&self) -> Update {
        let warmup = self.steps * 3 / 100; // the paper's 3 %
        self.update(self.lr_lower)
            .cosine_with_warmup(self.steps, warmup)
    }

    /// The update of the source weights.
    pub(super) fn upper(&self) -> Update {
        self.update(self.lr_upper).cosine(self.steps)
    }

    fn update(&self, rate: f64) -> Update {
        match self.optimizer {
            OptimizerKind::AdamW => Update::adamw(rate),
            OptimizerKind::Sgd => Update::sgd(rate),
        }
    }
}
