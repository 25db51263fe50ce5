//! How good a model is on text it has not seen.

use std::fmt;
use std::path::PathBuf;

use burn::module::Module;
use serde::{Deserialize, Serialize};

use super::answers::Answer;
use crate::data::{Message, Question, Record, Segment, Source, TokenBatch, Tokenizer};
use crate::models::{CausalLm, Dtype, Sampling};
use crate::reweight::SampleLosses;
use crate::{Error, Result, device};

/// The version of the report.
const SCHEMA_VERSION: u32 = 1;
/// Longest sample where the model would take more.
const LENGTH: usize = 1024;

/// How a question is asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PromptStyle {
    /// As the instruction of an Alpaca record.
    #[default]
    Alpaca,
    /// As a turn of the user, with the model's chat template.
    Chat,
    /// The question and a line break.
    Plain,
}

/// What [`evaluate`] measures, and how.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluateConfig {
    /// Hugging Face folder of the model.
    pub model: PathBuf,
    /// In which floating type the model is held and computed. Default: float32, also for a model saved in bfloat16.
    #[serde(default)]
    pub dtype: Dtype,
    /// `tokenizer.json` to use. Default: that of the model's folder.
    pub tokenizer: Option<PathBuf>,
    /// The held-out files: records as for training ([`Records`](crate::data::Records)), or questions
    /// ([`Question`]).
    pub files: Vec<PathBuf>,
    /// Samples computed at a time, at least 1; results are the same up to rounding. Default: 16.
    pub batch: usize,
    /// Longest sample, in tokens: longer texts are cut into pieces, longer responses truncated, as in training. Default:
    /// 1024, or the positions of the model if they are fewer.
    pub max_length: Option<usize>,
    /// How questions are asked. Default: as in Alpaca.
    pub prompt: PromptStyle,
    /// Tokens after which an answer ends, at least 1. Default: 256.
    pub answer_tokens: usize,
    /// Where to compute; see [`device`](crate::device). Default: `flex`.
    pub device: String,
}

impl EvaluateConfig {
    /// The defaults.
    pub fn new(model: impl Into<PathBuf>, files: impl IntoIterator<Item = PathBuf>) -> Self {
        Self {
            model: model.into(),
            dtype: Dtype::default(),
            tokenizer: None,
            files: files.into_iter().collect(),
            batch: 16,
            max_length: None,
            prompt: PromptStyle::default(),
            answer_tokens: 256,
            device: "flex".to_owned(),
        }
    }

    fn validate(&self) -> Result<()> {
        let none = |name, remedy| Err(Error::setting(name, 0, "at least 1", remedy));
        if self.files.is_empty() {
            return none("files", "name a file of records, for instance test.jsonl");
        }
        if self.batch == 0 {
            return none("batch", "16 is usual");
        }
        if self.answer_tokens == 0 {
            return none("answer-tokens", "256 is usual");
        }
        Ok(())
    }
}

/// What was measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EvaluationReport {
    /// Version of the format, 1.
    pub schema_version: u32,
    /// The settings, with the longest sample that was used.
    pub config: EvaluateConfig,
    /// A file each, in the order given.
    pub sources: Vec<Evaluation>,
    /// All files as if they were one.
    pub overall: Evaluation,
}

/// Losses of one file or of all, in nats.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Name of the file without its ending; `overall` for all.
    pub name: String,
    /// Number of records.
    pub records: usize,
    /// Number of samples; a long text gives several.
    pub samples: usize,
    /// Number of samples left out because they have no token to predict.
    pub skipped: usize,
    /// Number of tokens predicted.
    pub tokens: usize,
    /// Mean over the samples of each sample's mean over its own tokens: the loss that training minimizes.
    pub sample_loss: f64,
    /// Mean over all tokens, so that long samples count more.
    pub token_loss: f64,
    /// `exp` of the loss a token.
    pub perplexity: f64,
    /// The answers to questions, if there are any.
    pub answers: Option<AnswerScore>,
}

/// How many questions were answered rightly.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AnswerScore {
    /// Number of questions.
    pub questions: usize,
    /// Number of right answers.
    pub correct: usize,
    /// Number of questions to which no answer was found in what the model said, or that are too long for it.
    pub unanswered: usize,
    /// Share of right answers.
    pub exact_match: f64,
}

/// Measures the loss of a model on held-out files, and its answers to questions.
///
/// Records become samples as in training; the answer of a question is learned text like the response to an instruction. The
/// model also answers each question itself, taking the most likely token each time, up to the end of text, and its answer is
/// compared with the right one by [`Answer`].
///
/// # Errors
///
/// Settings that cannot work; those of [`device`](crate::device), [`CausalLm::from_pretrained`],
/// [`Tokenizer::from_pretrained`], [`Source::read`] and [`Question::read`]; a loss that is not finite.
pub fn evaluate(config: &EvaluateConfig) -> Result<EvaluationReport> {
    config.validate()?;
    let device = device(&config.device)?;
    config.dtype.check(&device)?;
    let tokenizer = match &config.tokenizer {
        Some(file) => Tokenizer::from_file(file)?,
        None => Tokenizer::from_pretrained(&config.model)?,
    };
    let model = CausalLm::from_pretrained_as(&config.model, &device, config.dtype)?;
    tokenizer.check_vocabulary(model.vocabulary_size())?;
    let longest = model.longest_sequence();
    let max_length = config.max_length.unwrap_or(longest.min(LENGTH));
    check_length(max_length, longest)?;

    let mut sources = Vec::new();
    for file in &config.files {
        let questions = Question::read(file)?;
        let source = match &questions {
            Some(questions) => {
                let samples = questions
                    .iter()
                    .map(|question| config.prompt.sample(question, &tokenizer));
                Source::of_questions(file, samples, max_length)?
            }
            None => Source::read("", file, &tokenizer, max_length)?,
        };
        let mut evaluation = Evaluation::of(&model, &source, config.batch)?;
        if let Some(questions) = questions {
            evaluation.answers = Some(answers(&model, &tokenizer, &questions, config)?);
        }
        sources.push(evaluation);
    }
    Ok(EvaluationReport {
        schema_version: SCHEMA_VERSION,
        config: EvaluateConfig {
            max_length: Some(max_length),
            ..config.clone()
        },
        overall: Evaluation::overall(&sources),
        sources,
    })
}

pub(super) fn check_length(max_length: usize, longest: usize) -> Result<()> {
    if max_length <= longest {
        return Ok(());
    }
    Err(Error::setting(
        "max-length",
        max_length,
        format!("at most {longest}, the positions of the model"),
        "use a smaller one; longer texts are cut into pieces",
    ))
}

/// The loss of each sample: the mean over its label tokens.
pub(super) fn sample_losses(model: &CausalLm, source: &Source, batch: usize) -> Result<Vec<f64>> {
    let model = model.valid(); // no tape
    let chunks = source.in_memory()?.chunks(batch.max(1));
    let losses = chunks.flat_map(|chunk| {
        let batch = TokenBatch::new(&chunk.iter().collect::<Vec<_>>());
        let losses = SampleLosses::sample_losses(&model, &batch).into_data();
        losses.iter::<f64>().collect::<Vec<_>>()
    });
    Ok(losses.collect())
}

impl Evaluation {
    pub(super) fn of(model: &CausalLm, source: &Source, batch: usize) -> Result<Self> {
        let losses = sample_losses(model, source, batch)?;
        if let Some(bad) = losses.iter().position(|loss| !loss.is_finite()) {
            let message = format!(
                "the loss of sample {bad} is {}; check that the model is whole and belongs to the tokenizer",
                losses[bad]
            );
            return Err(Error::file(&source.path, message));
        }
        let stem = source.path.file_stem().unwrap_or_default();
        let mut evaluation = Self {
            name: stem.to_string_lossy().into_owned(),
            records: source.records,
            samples: losses.len(),
            skipped: source.skipped,
            ..Self::default()
        };
        let (mut by_sample, mut by_token) = (0.0, 0.0);
        for (loss, sample) in losses.iter().zip(source.in_memory()?) {
            let tokens = sample.label_tokens();
            evaluation.tokens += tokens;
            by_sample += loss;
            by_token += loss * tokens as f64;
        }
        evaluation.set_losses(by_sample, by_token);
        Ok(evaluation)
    }

    /// From the sums over samples and over tokens. There is at least one of each.
    fn set_losses(&mut self, by_sample: f64, by_token: f64) {
        self.sample_loss = by_sample / self.samples as f64;
        self.token_loss = by_token / self.tokens as f64;
        self.perplexity = self.token_loss.exp();
    }

    fn overall(sources: &[Self]) -> Self {
        let sum = |of: fn(&Self) -> usize| sources.iter().map(of).sum();
        let mut overall = Self {
            name: "overall".to_owned(),
            records: sum(|source| source.records),
            samples: sum(|source| source.samples),
            skipped: sum(|source| source.skipped),
            tokens: sum(|source| source.tokens),
            ..Self::default()
        };
        let by_sample = sources.iter().map(|s| s.sample_loss * s.samples as f64);
        let by_token = sources.iter().map(|s| s.token_loss * s.tokens as f64);
        overall.set_losses(by_sample.sum(), by_token.sum());
        let scores = sources.iter().filter_map(|source| source.answers);
        overall.answers = scores.reduce(|a, b| AnswerScore {
            questions: a.questions + b.questions,
            correct: a.correct + b.correct,
            unanswered: a.unanswered + b.unanswered,
            exact_match: (a.correct + b.correct) as f64 / (a.questions + b.questions) as f64,
        });
        overall
    }
}

impl PromptStyle {
    fn record(self, question: &Question) -> Record {
        let (question, answer) = (question.question.clone(), question.answer.clone());
        match self {
            Self::Chat => Record::Chat {
                messages: [("user", question), ("assistant", answer)]
                    .map(|(role, content)| Message {
                        role: role.to_owned(),
                        content,
                    })
                    .to_vec(),
            },
            Self::Alpaca | Self::Plain => Record::Alpaca {
                instruction: question,
                input: String::new(),
                output: answer,
            },
        }
    }

    /// Question and answer, of which the answer is learned.
    fn segments(self, question: &Question) -> Vec<Segment> {
        if self != Self::Plain {
            return self.record(question).into_segments();
        }
        [
            (format!("{}\n", question.question), false),
            (question.answer.clone(), true),
        ]
        .map(|(text, learned)| Segment { text, learned })
        .to_vec()
    }

    fn sample(self, question: &Question, tokenizer: &Tokenizer) -> Result<crate::data::Sample> {
        match self {
            Self::Chat => tokenizer.encode_record(self.record(question)),
            Self::Alpaca | Self::Plain => tokenizer.encode(&self.segments(question)),
        }
    }

    /// The tokens that the answer follows.
    fn prompt(self, question: &Question, tokenizer: &Tokenizer) -> Result<Vec<u32>> {
        if let (Self::Chat, Record::Chat { messages }) = (self, self.record(question)) {
            return tokenizer.chat_prompt(&messages[..1]);
        }
        let segments = self.segments(question);
        let mut tokens = tokenizer.tokens(&segments[0].text)?;
        if tokens.len() > 1 && tokens.last().copied() == tokenizer.end_of_text() {
            tokens.pop(); // of a tokenizer that ends every text: this one is not over
        }
        Ok(tokens)
    }
}

fn answers(
    model: &CausalLm,
    tokenizer: &Tokenizer,
    questions: &[Question],
    config: &EvaluateConfig,
) -> Result<AnswerScore> {
    let mut score = AnswerScore {
        questions: questions.len(),
        ..AnswerScore::default()
    };
    let end = tokenizer.end_of_text();
    for question in questions {
        let prompt = config.prompt.prompt(question, tokenizer)?;
        if prompt.is_empty() || prompt.len() >= model.longest_sequence() {
            score.unanswered += 1;
            continue;
        }
        let tokens: Vec<u32> = model
            .generate(&prompt, Sampling::Greedy)?
            .take(config.answer_tokens)
            .take_while(|token| Some(*token) != end)
            .collect();
        let right = Answer::of(&question.answer);
        match right.found_in(&tokenizer.text(&tokens)?) {
            Some(answer) => score.correct += usize::from(answer == right),
            None => score.unanswered += 1,
        }
    }
    score.exact_match = score.correct as f64 / score.questions as f64;
    Ok(score)
}

impl fmt::Display for EvaluationReport {
    /// A table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<24} {:>8} {:>9} {:>11} {:>10} {:>10} {:>12}",
            "file", "samples", "tokens", "sample loss", "token loss", "perplexity", "exact match"
        )?;
        for line in self.sources.iter().chain([&self.overall]) {
            let exact = line.answers.map_or(String::new(), |score| {
                format!("{}/{}", score.correct, score.questions)
            });
            writeln!(
                f,
                "{:<24} {:>8} {:>9} {:>11.4} {:>10.4} {:>10.2} {:>12}",
                line.name,
                line.samples,
                line.tokens,
                line.sample_loss,
                line.token_loss,
                line.perplexity,
                exact
            )?;
        }
        Ok(())
    }
}

/// The mean loss over the samples of a source.
pub(super) fn mean_loss(model: &CausalLm, source: &Source, batch: usize) -> Result<f64> {
    let losses = sample_losses(model, source, batch)?;
    Ok(losses.iter().sum::<f64>() / losses.len() as f64)
}
