//! The data of a run and the model it starts from.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;

use super::config::{OptimizerKind, ReweightConfig};
use super::evaluate::{check_length, mean_loss};
use super::placement::{Devices, loading, placed};
use super::reweighting::Reweighting;
use super::seeds::SeedRuns;
use super::training::Training;
use crate::Result;
use crate::collective::Ranks;
use crate::data::{Corpus, CorpusConfig, Source, Tokenizer};
use crate::models::{
    CausalLm, Differentiation, Dtype, Gpt2Config, MemoryPlan, ModelSize, Placement, PlanConfig,
};
use crate::reweight::{self, Draws, SourceWeights, TokenSources};
use crate::sampler::{LayerSampler, Lisa};

/// Tokens of the vocabulary that is trained on the sources if no tokenizer is given.
pub(super) const VOCABULARY: usize = 1024;
/// The device whose memory is the host's.
const HOST: &str = "flex";
/// Width, blocks and heads of the model from scratch.
const WIDTH: usize = 128;
const BLOCKS: usize = 2;
const HEADS: usize = 4;

/// The data, the tokenizer and the base model of a run, as a [`ReweightConfig`] describes them.
#[derive(Debug)]
pub struct Experiment {
    config: ReweightConfig,
    devices: Devices,
    tokenizer: Tokenizer,
    sources: Arc<[Source]>,
    validation: Arc<[Source]>,
    test: Option<Source>,
    ranks: Ranks,
}

/// Random draws of a run that must not repeat each other.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Model,
    Training,
    Validation,
    Layers,
}

impl Experiment {
    /// Reads the data of `config.data` and checks the settings. The model is opened when it is used.
    ///
    /// # Errors
    ///
    /// Settings that cannot work; those of [`device`](crate::device), [`Corpus::open`],
    /// [`Tokenizer::from_file`].
    pub fn open(config: ReweightConfig) -> Result<Self> {
        config.validate()?;
        let devices = Devices::open(&config)?;
        let mut options = CorpusConfig::new(config.max_length)
            .vocabulary(VOCABULARY)
            .stream(config.stream)
            .index(config.index.clone());
        let (file, folder) = (config.tokenizer.as_deref(), config.model.as_deref());
        if let Some(tokenizer) = given_tokenizer(file, folder)? {
            options = options.tokenizer(tokenizer);
        }
        let corpus = Corpus::open(&config.data, options)?;
        Ok(Self {
            config,
            devices,
            tokenizer: corpus.tokenizer,
            sources: corpus.sources.into(),
            validation: [corpus.validation].into(),
            test: corpus.test,
            ranks: Ranks::default(),
        })
    }

    /// Learns the source weights together with other ranks, each of which opens the same experiment: see
    /// [`collective`](crate::collective). All call the same methods; rank 0 alone writes files. Every rank computes its share
    /// of [`ReweightConfig::batch`], and the results depend on the number of ranks by rounding only. Default: alone.
    #[must_use]
    pub fn with_ranks(mut self, ranks: Ranks) -> Self {
        self.ranks = ranks;
        self
    }

    /// The ranks of the run.
    pub fn ranks(&self) -> &Ranks {
        &self.ranks
    }

    /// The settings.
    pub fn config(&self) -> &ReweightConfig {
        &self.config
    }

    /// The training sources, sorted by name.
    pub fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The validation set.
    pub fn validation(&self) -> &Source {
        &self.validation[0]
    }

    /// The test set, if there is one.
    pub fn test(&self) -> Option<&Source> {
        self.test.as_ref()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Uniform weights for the sources.
    ///
    /// # Errors
    ///
    /// Those of [`SourceWeights::uniform`].
    pub fn uniform_weights(&self) -> Result<SourceWeights> {
        let names = self.sources.iter().map(|source| source.name.as_str());
        SourceWeights::uniform(names, self.devices.first())
    }

    /// The base model, read from its folder or drawn from the seed, on the devices of `w`; the same at every call.
    ///
    /// # Errors
    ///
    /// Those of [`CausalLm::from_pretrained`]; a vocabulary or a length that is too small for the data.
    pub fn base_model(&self) -> Result<CausalLm> {
        let placement = self.placement()?;
        let devices = self.devices.of_w(placement);
        let model = self.loaded(&loading(devices))?;
        placed(model, devices, || {
            let mut runs = self.blocks(placement)?;
            runs.truncate(devices.len());
            Ok(runs)
        })
    }

    /// The base model on one device.
    fn loaded(&self, device: &Device) -> Result<CausalLm> {
        let (folder, length) = (self.config.model.as_deref(), self.config.max_length);
        let (seed, dtype) = (self.config.seed, self.config.dtype);
        let host = match self.config.offload {
            Some(_) => Some(crate::device(HOST)?.autodiff()),
            None => None,
        };
        // A model that is larger than the device is opened where its blocks will wait.
        let opened_on = host.as_ref().unwrap_or(device);
        let model = base_model(folder, &self.tokenizer, length, seed, dtype, opened_on)?;
        let model = match &host {
            Some(host) => model.offload(std::slice::from_ref(device), host)?,
            None => model,
        };
        let how = self.config.blockwise.map(|blockwise| match blockwise {
            true => Differentiation::Blockwise,
            false => Differentiation::Plain,
        });
        Ok(model.with_differentiation(how))
    }

    /// The auxiliary model on its devices, from a copy of the base model.
    pub(super) fn auxiliary(&self, model: CausalLm) -> Result<CausalLm> {
        let placement = self.placement()?;
        let Some(devices) = self.devices.of_u(placement) else {
            return Ok(model);
        };
        placed(model, devices, || {
            let mut runs = self.blocks(placement)?;
            Ok(runs.split_off(runs.len() - devices.len()))
        })
    }

    /// The number of blocks on each device.
    fn blocks(&self, placement: Placement) -> Result<Vec<usize>> {
        let plan = self.plan_config();
        let plan = MemoryPlan::new(&self.size()?, &PlanConfig { placement, ..plan })?;
        Ok(plan.devices().iter().map(|device| device.blocks).collect())
    }

    /// Where the models of the run are.
    ///
    /// # Errors
    ///
    /// Those of [`plan`](Self::plan).
    pub fn placement(&self) -> Result<Placement> {
        let run = || Ok((self.size()?, self.plan_config()));
        self.devices.placement(&self.config, run)
    }

    /// The memory that learning the source weights takes beside this process as it is now, predicted from the model's
    /// config.json: nothing is loaded. It takes the longest sample for the length of all; of a
    /// source that is streamed, what no sample is longer than.
    ///
    /// # Errors
    ///
    /// Those of [`ModelSize::read`], and settings with which a run would not start either.
    pub fn plan(&self) -> Result<MemoryPlan> {
        reweight::problem(self.training_draws(), self.validation_draws())?;
        let size = self.size()?;
        self.tokenizer.check_vocabulary(size.vocabulary_size())?;
        check_length(self.config.max_length, size.longest_sequence())?;
        let placement = self.placement()?;
        let plan = self.plan_config();
        MemoryPlan::new(&size, &PlanConfig { placement, ..plan })
    }

    fn size(&self) -> Result<ModelSize> {
        match &self.config.model {
            Some(folder) => ModelSize::read(folder),
            None => Ok(ModelSize::of(&self.loaded(self.devices.first())?)),
        }
    }

    /// What the memory depends on, but for the placement.
    fn plan_config(&self) -> PlanConfig {
        let config = &self.config;
        let sources = self.sources.iter().chain(&*self.validation);
        let longest = sources.map(|source| source.samples.longest()).max();
        PlanConfig {
            batch: config.batch.div_ceil(self.ranks.count()),
            micro_batch: config.micro_batch,
            length: longest.unwrap_or(config.max_length),
            dtype: config.dtype,
            moments: match config.optimizer {
                OptimizerKind::AdamW => 2,
                OptimizerKind::Sgd => 0,
            },
            lisa_blocks: config.lisa_blocks,
            draws: Some(config.steps.div_ceil(config.lisa_period.max(1))),
            blockwise: config.blockwise,
            concurrent: config.parallel,
            offload: config.offload,
            ..PlanConfig::default()
        }
    }

    /// Starts learning the source weights. Files go to the folder `out`.
    ///
    /// # Errors
    ///
    /// A folder that already holds a run, a file that cannot be written, settings that cannot work.
    pub fn reweight(&self, out: impl AsRef<Path>) -> Result<Reweighting> {
        Reweighting::start(self, out.as_ref())
    }

    /// Goes on with a run from the last checkpoint in its folder `out`, as if it had not been interrupted: the weights, the
    /// model and every line of `metrics.jsonl` but for its `seconds` come out the same, bit for bit, with the same program
    /// on the same kind of machine and the same number of ranks; with another number, or on another device, up to rounding.
    /// Lines of steps after the checkpoint are cut off. A checkpoint that is damaged is passed
    /// over for the one before ([`Reweighting::damaged`]).
    ///
    /// ```no_run
    /// use scalebio::train::{Experiment, ReweightConfig};
    ///
    /// let experiment = Experiment::open(ReweightConfig::read("runs/reweight-1")?)?;
    /// let mut run = experiment.resume("runs/reweight-1")?;
    /// for step in run.by_ref() {
    ///     println!("{}", step?);
    /// }
    /// # Ok::<(), scalebio::Error>(())
    /// ```
    ///
    /// # Errors
    ///
    /// A folder without a checkpoint that is whole; a checkpoint of another version, with other settings, of other data or
    /// of another base model, with what differs; a run that another process is writing.
    pub fn resume(&self, out: impl AsRef<Path>) -> Result<Reweighting> {
        Reweighting::resume(self, out.as_ref())
    }

    /// Starts learning the source weights once for each seed, one run after the other. Files go to the folder `out`.
    ///
    /// # Errors
    ///
    /// No seed, a seed twice, a folder that already holds such runs. What a run's start refuses, the first step returns.
    pub fn seeds(self, seeds: &[u64], out: impl AsRef<Path>) -> Result<SeedRuns> {
        SeedRuns::new(self, seeds, out.as_ref())
    }

    /// Takes another seed. The data and the tokenizer do not depend on it.
    pub fn reseed(&mut self, seed: u64) {
        self.config.seed = seed;
    }

    /// Starts training the base model on fixed `weights`: the update of `u`, with the same steps, batches
    /// and learning rates as in reweighting.
    ///
    /// # Errors
    ///
    /// Settings that cannot work.
    pub fn train(&self, weights: SourceWeights) -> Result<Training> {
        Training::start(self, weights)
    }

    /// The mean loss of a model over the samples of a source, in nats.
    ///
    /// # Errors
    ///
    /// [`Error::File`](crate::Error::File) for a source that is streamed.
    pub fn mean_loss(&self, model: &CausalLm, source: &Source) -> Result<f64> {
        let batch = self.config.micro_batch.unwrap_or(self.config.batch);
        mean_loss(model, source, batch)
    }

    pub(super) fn training_draws(&self) -> Draws<TokenSources> {
        self.draws(&self.sources, self.config.batch, Stream::Training)
    }

    pub(super) fn validation_draws(&self) -> Draws<TokenSources> {
        // A validation set smaller than the batch is no mistake: all of it is drawn, which is exact.
        let batch = self.config.batch.min(self.validation().samples.len());
        self.draws(&self.validation, batch, Stream::Validation)
    }

    fn draws(&self, sources: &Arc<[Source]>, batch: usize, stream: Stream) -> Draws<TokenSources> {
        let samples = TokenSources::new(Arc::clone(sources));
        let draws = Draws::new(samples, batch).seed(self.seed(stream));
        match self.config.micro_batch {
            Some(samples) => draws.micro_batch(samples),
            None => draws,
        }
    }

    /// LISA over the blocks of `model`, if asked for.
    pub(super) fn layers(&self, model: &CausalLm) -> Result<Option<Lisa>> {
        let config = &self.config;
        layers(model, config.lisa_blocks, config.lisa_period, config.seed)
    }

    pub(super) fn seed(&self, stream: Stream) -> u64 {
        stream.seed(self.config.seed)
    }
}

impl Stream {
    /// Four streams a seed, none of which is another seed's.
    pub(super) fn seed(self, seed: u64) -> u64 {
        seed.wrapping_mul(4).wrapping_add(self as u64)
    }
}

/// The tokenizer of a file or, without one, of a model's folder.
pub(super) fn given_tokenizer(
    file: Option<&Path>,
    folder: Option<&Path>,
) -> Result<Option<Tokenizer>> {
    match (file, folder) {
        (Some(file), _) => Tokenizer::from_file(file).map(Some),
        (None, Some(folder)) => Tokenizer::from_pretrained(folder).map(Some),
        (None, None) => Ok(None),
    }
}

/// The model of a folder or, without one, a small GPT-2 drawn from the seed.
pub(super) fn base_model(
    folder: Option<&Path>,
    tokenizer: &Tokenizer,
    max_length: usize,
    seed: u64,
    dtype: Dtype,
    device: &Device,
) -> Result<CausalLm> {
    let model = match folder {
        Some(folder) => CausalLm::from_pretrained_as(folder, device, dtype)?,
        None => {
            let vocabulary = tokenizer.vocabulary_size();
            let shape = Gpt2Config::new(vocabulary, max_length, WIDTH, BLOCKS, HEADS);
            CausalLm::from(shape.init(Stream::Model.seed(seed), device)?).cast(dtype)?
        }
    };
    tokenizer.check_vocabulary(model.vocabulary_size())?;
    check_length(max_length, model.longest_sequence())?;
    Ok(model)
}

/// LISA over the blocks of `model`, if it is to train a number of blocks at a time.
pub(super) fn layers(
    model: &CausalLm,
    blocks: Option<usize>,
    period: usize,
    seed: u64,
) -> Result<Option<Lisa>> {
    let Some(active) = blocks else {
        return Ok(None);
    };
    let lisa = Lisa::over(model, &model.blocks_path())?
        .active(active)
        .period(period)
        .seed(Stream::Layers.seed(seed));
    lisa.validate()?;
    Ok(Some(lisa))
}
