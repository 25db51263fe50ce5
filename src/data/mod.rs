//! Text for language models: from files of records to batches of tokens.
//!
//! A folder holds one file a source, `train_<source>.jsonl`, a validation set `val.jsonl` and, if wanted, a test set
//! `test.jsonl` (each may also be a `.json`). [`Corpus::open`] reads it in four steps, each of which can be used alone:
//!
//! | step | from | to |
//! |---|---|---|
//! | [`Records`] | a file | [`Record`]s, or an [`Error`](crate::Error) that names the file and the line |
//! | [`Record::into_segments`] | a record | [`Segment`]s: the prompt, and what is to be learned |
//! | [`Tokenizer::encode`] | segments | a [`Sample`]: token ids, and which of them are learned |
//! | [`TokenBatch::new`] | samples | ids, mask and labels as padded tensors |
//!
//! This module knows nothing of models, of weights or of training.
//!
//! # Example
//!
//! ```
//! use scalebio::data::{Corpus, CorpusConfig, TokenBatch};
//! # let folder = std::env::temp_dir().join(format!("scalebio-data-{}", std::process::id()));
//! # std::fs::create_dir_all(&folder)?;
//! # for file in ["train_cats.jsonl", "train_dogs.jsonl", "val.jsonl"] {
//! #     std::fs::write(folder.join(file), "{\"text\": \"Cats sleep. Dogs bark.\"}\n")?;
//! # }
//!
//! let corpus = Corpus::open(&folder, CorpusConfig::new(64).vocabulary(300))?;
//! let names: Vec<_> = corpus.sources.iter().map(|source| source.name.as_str()).collect();
//! assert_eq!(names, ["cats", "dogs"]);
//!
//! let (cats, validation) = (corpus.sources[0].in_memory()?, corpus.validation.in_memory()?);
//! let batch = TokenBatch::new(&[&cats[0], &validation[0]]);
//! assert_eq!(batch.samples(), 2);
//! # std::fs::remove_dir_all(&folder)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod batch;
mod chat;
mod conversation;
mod corpus;
mod files;
mod folder;
mod question;
mod reader;
mod record;
mod sample;
mod stream;
mod template;
mod tokens;

pub use batch::TokenBatch;
pub use conversation::Message;
pub use corpus::{Corpus, CorpusConfig, Source};
pub(crate) use corpus::{is_streamed, train_tokenizer};
pub(crate) use files::DataFiles;
pub use question::Question;
pub(crate) use reader::{Place, RawRecords};
pub use record::{Record, Records};
pub use sample::{IGNORED, Sample};
pub use stream::SampleStore;
pub(crate) use stream::{Loader, Places};
pub use template::Segment;
pub use tokens::Tokenizer;
