//! The data of a run and the model it starts from.

use std::path::Path;
use std::sync::Arc;

use burn::tensor::Device;

use super::config::ReweightConfig;
use super::reweighting::Reweighting;
use super::training::Training;
use crate::data::{Corpus, CorpusConfig, Source, TokenBatch, Tokenizer};
use crate::models::{CausalLm, Gpt2Config};
use crate::reweight::{Draws, SampleLosses, SourceWeights, TokenSources};
use crate::sampler::{LayerSampler, Lisa};
use crate::{Result, device};

/// Tokens of the vocabulary that is trained on the sources if no tokenizer is given.
const VOCABULARY: usize = 1024;
/// Width, blocks and heads of the model from scratch.
const WIDTH: usize = 128;
const BLOCKS: usize = 2;
const HEADS: usize = 4;

/// The data, the tokenizer and the base model of a run, as a [`ReweightConfig`] describes them.
#[derive(Debug)]
pub struct Experiment {
    config: ReweightConfig,
    device: Device,
    tokenizer: Tokenizer,
    sources: Arc<[Source]>,
    validation: Arc<[Source]>,
    test: Option<Source>,
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
        let device = device(&config.device)?.autodiff();
        config.dtype.check(&device)?;
        let mut options = CorpusConfig::new(config.max_length).vocabulary(VOCABULARY);
        if let Some(file) = &config.tokenizer {
            options = options.tokenizer(Tokenizer::from_file(file)?);
        } else if let Some(folder) = &config.model {
            options = options.tokenizer(Tokenizer::from_pretrained(folder)?);
        }
        let corpus = Corpus::open(&config.data, options)?;
        Ok(Self {
            config,
            device,
            tokenizer: corpus.tokenizer,
            sources: corpus.sources.into(),
            validation: [corpus.validation].into(),
            test: corpus.test,
        })
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
        SourceWeights::uniform(names, &self.device)
    }

    /// The base model, read from its folder or drawn from the seed; the same at every call.
    ///
    /// # Errors
    ///
    /// Those of [`CausalLm::from_pretrained`]; a vocabulary or a length that is too small for the data.
    pub fn base_model(&self) -> Result<CausalLm> {
        let model = match &self.config.model {
            Some(folder) => CausalLm::from_pretrained_as(folder, &self.device, self.config.dtype)?,
            None => {
                let vocabulary = self.tokenizer.vocabulary_size();
                let model =
                    Gpt2Config::new(vocabulary, self.config.max_length, WIDTH, BLOCKS, HEADS)
                        .init(self.seed(Stream::Model), &self.device)?;
                CausalLm::from(model).cast(self.config.dtype)?
            }
        };
        self.tokenizer.check_vocabulary(model.vocabulary_size())?;
        let longest = model.longest_sequence();
        if self.config.max_length > longest {
            return Err(crate::Error::setting(
                "max-length",
                self.config.max_length,
                format!("at most {longest}, the positions of the model"),
                "use a smaller one; longer texts are cut into pieces",
            ));
        }
        Ok(model)
    }

    /// Starts learning the source weights. Files go to the folder `out`.
    ///
    /// # Errors
    ///
    /// A folder that already holds a run, a file that cannot be written, settings that cannot work.
    pub fn reweight(&self, out: impl AsRef<Path>) -> Result<Reweighting> {
        Reweighting::start(self, out.as_ref())
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
    pub fn mean_loss(&self, model: &CausalLm, source: &Source) -> f64 {
        let model = burn::module::Module::valid(model);
        let batch = self.config.micro_batch.unwrap_or(self.config.batch).max(1);
        let sum: f64 = source
            .samples
            .chunks(batch)
            .map(|chunk| {
                let batch = TokenBatch::new(&chunk.iter().collect::<Vec<_>>());
                SampleLosses::sample_losses(&model, &batch)
                    .sum()
                    .into_scalar::<f64>()
            })
            .sum();
        sum / source.samples.len() as f64
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
        let Some(active) = self.config.lisa_blocks else {
            return Ok(None);
        };
        let lisa = Lisa::over(model, &model.blocks_path())?
            .active(active)
            .period(self.config.lisa_period)
            .seed(self.seed(Stream::Layers));
        lisa.validate()?;
        Ok(Some(lisa))
    }

    pub(super) fn seed(&self, stream: Stream) -> u64 {
        // Four streams a seed, none of which is another seed's.
        self.config.seed.wrapping_mul(4).wrapping_add(stream as u64)
    }
}
