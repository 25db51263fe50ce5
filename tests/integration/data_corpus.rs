//! A folder of data: what is read, what is left out, and what each error says.

use std::path::Path;

use burn::tensor::{Device, Int, Tensor};
use proptest::prelude::*;
use scalebio::burn;
use scalebio::data::{
    Corpus, CorpusConfig, IGNORED, Sample, Segment, Source, TokenBatch, Tokenizer,
};
use tempfile::TempDir;

const TEXT: &str = "{\"text\": \"abcdef\"}\n";

fn folder(files: &[(&str, &str)]) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, contents) in files {
        std::fs::write(folder.path().join(name), contents).unwrap();
    }
    folder
}

/// A tokenizer with one token a byte.
fn bytes() -> Tokenizer {
    Tokenizer::train(std::iter::empty::<&str>(), 257).unwrap()
}

fn config(max_length: usize) -> CorpusConfig {
    CorpusConfig::new(max_length).tokenizer(bytes())
}

fn open(files: &[(&str, &str)], max_length: usize) -> Corpus {
    Corpus::open(folder(files).path(), config(max_length)).unwrap()
}

/// The first source, `a`, with these records.
fn source(records: &str, max_length: usize) -> Source {
    let files = [
        ("train_a.jsonl", records),
        ("train_b.jsonl", TEXT),
        ("val.jsonl", TEXT),
    ];
    open(&files, max_length).sources.swap_remove(0)
}

/// The message, and that it starts with the path of `file` (the folder itself if empty).
fn error(files: &[(&str, &str)], file: &str) -> String {
    let folder = folder(files);
    let error = Corpus::open(folder.path(), config(8))
        .unwrap_err()
        .to_string();
    let path = if file.is_empty() {
        folder.path().to_owned()
    } else {
        folder.path().join(file)
    };
    let rest = error
        .strip_prefix(&path.display().to_string())
        .unwrap_or_else(|| panic!("{error}"));
    rest.to_owned()
}

fn ids_of(text: &str) -> Sample {
    bytes()
        .encode(&[Segment {
            text: text.to_owned(),
            learned: true,
        }])
        .unwrap()
}

#[test]
fn sources_are_sorted_and_other_files_are_ignored() {
    let files = [
        ("train_b.json", "[{\"text\": \"b\"}, {\"text\": \"bb\"}]"),
        ("train_a.jsonl", TEXT),
        ("train_c d.e.jsonl", TEXT),
        ("val.json", TEXT),
        ("test.jsonl", TEXT),
        ("train_x.txt", "?"),
        ("notes.json", "?"),
        ("train.jsonl", "?"),
    ];
    let corpus = open(&files, 64);
    let names: Vec<_> = corpus.sources.iter().map(|s| s.name.as_str()).collect();
    assert_eq!(names, ["a", "b", "c d.e"]);
    assert_eq!(corpus.sources[1].records, 2);
    assert_eq!(
        corpus.sources[1].in_memory().unwrap(),
        [ids_of("b"), ids_of("bb")]
    );
    assert_eq!(corpus.sources[1].path.file_name().unwrap(), "train_b.json");
    assert_eq!(
        (
            corpus.validation.name.as_str(),
            corpus.validation.samples.len()
        ),
        ("val", 1)
    );
    assert_eq!(corpus.test.unwrap().name, "test");
    assert!(open(&files[..4], 64).test.is_none());
}

#[test]
fn a_long_text_is_cut_and_its_last_piece_ends_with_the_end_of_text() {
    // 6 bytes and the end of text.
    let whole = ids_of("abcdef");
    let source = source(TEXT, 3);
    let lengths: Vec<_> = source
        .in_memory()
        .unwrap()
        .iter()
        .map(|s| s.ids.len())
        .collect();
    assert_eq!(lengths, [3, 3]);
    // The seventh token stands alone: nothing comes before it.
    assert_eq!((source.records, source.skipped), (1, 1));
    assert_eq!(source.in_memory().unwrap()[1].ids, whole.ids[3..6]);
}

#[test]
fn a_long_response_is_truncated_and_has_no_end_of_text() {
    let records = "{\"instruction\": \"Count.\", \"input\": \"\", \"output\": \"1 2 3\"}\n";
    let whole = source(records, 512).in_memory().unwrap()[0].clone();
    let length = whole.ids.len();
    assert_eq!(whole.label_tokens(), 6);
    assert_eq!(whole.ids.last().copied(), bytes().end_of_text());

    let cut = source(records, length - 1).in_memory().unwrap()[0].clone();
    assert_eq!(cut.label_tokens(), 5);
    assert_eq!(cut.ids, whole.ids[..length - 1]);
    assert_eq!(cut.learned, whole.learned[..length - 1]);
}

#[test]
fn a_prompt_that_fills_the_length_is_skipped_and_counted() {
    let records =
        format!("{{\"instruction\": \"Count.\", \"output\": \"1\"}}\n{TEXT}{{\"text\": \"\"}}\n");
    let source = source(&records, 20);
    assert_eq!(
        (source.records, source.samples.len(), source.skipped),
        (3, 1, 2)
    );
}

#[test]
fn a_tokenizer_is_trained_on_the_sources_where_none_is_given() {
    let text = format!("{{\"text\": \"{}\"}}\n", "the cat and the hat ".repeat(9));
    let files = [
        ("train_a.jsonl", text.as_str()),
        ("train_b.jsonl", TEXT),
        ("val.jsonl", &text),
    ];
    let folder = folder(&files);
    let corpus = Corpus::open(folder.path(), CorpusConfig::new(256).vocabulary(265)).unwrap();
    assert_eq!(corpus.tokenizer.vocabulary_size(), 265);
    assert!(corpus.validation.in_memory().unwrap()[0].ids.len() < 150);
    let error = corpus
        .tokenizer
        .check_vocabulary(264)
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("at least 265, the tokens of the tokenizer trained on the sources"),
        "{error}"
    );

    let error = Corpus::open(folder.path(), CorpusConfig::new(64).vocabulary(9)).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("vocabulary is 9, but must be at least 257"),
        "{error}"
    );
}

#[test]
fn a_bad_record_is_named_also_while_a_tokenizer_is_trained() {
    let folder = folder(&[
        ("train_a.jsonl", TEXT),
        ("train_b.jsonl", "{\"text\": \"b\"}\n{\"text\": 1}\n"),
        ("val.jsonl", TEXT),
    ]);
    for config in [CorpusConfig::new(8), config(8)] {
        let error = Corpus::open(folder.path(), config).unwrap_err().to_string();
        assert!(
            error.ends_with("train_b.jsonl:2: `text` must be a string, but is a number"),
            "{error}"
        );
    }
}

#[test]
fn a_folder_that_is_missing_or_a_file_is_named() {
    let folder = folder(&[("file", "")]);
    for name in ["none", "file"] {
        let path = folder.path().join(name);
        let error = Corpus::open(&path, config(8)).unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("{}: not a folder; ", path.display())),
            "{error}"
        );
    }
}

#[test]
fn no_source_is_an_error() {
    let message = error(&[("val.jsonl", TEXT), ("train.jsonl", TEXT)], "");
    assert!(
        message.starts_with(": no source; ") && message.contains("`train_<source>.jsonl`"),
        "{message}"
    );
}

#[test]
fn one_source_is_an_error() {
    let message = error(&[("val.jsonl", TEXT), ("train_a.jsonl", TEXT)], "");
    assert!(message.starts_with(": only one source, `a`; "), "{message}");
}

#[test]
fn a_source_in_two_files_is_an_error() {
    let files = [
        ("val.jsonl", TEXT),
        ("train_a.jsonl", TEXT),
        ("train_a.json", TEXT),
        ("train_b.json", TEXT),
    ];
    let message = error(&files, "train_a.json");
    assert!(
        message.starts_with(": the source `a` is here, and again in "),
        "{message}"
    );
    assert!(message.contains("train_a.jsonl; "), "{message}");
}

#[test]
fn a_source_without_a_name_is_an_error() {
    let message = error(
        &[
            ("val.jsonl", TEXT),
            ("train_.jsonl", TEXT),
            ("train_b.json", TEXT),
        ],
        "train_.jsonl",
    );
    assert!(
        message.starts_with(": the name of the source is empty; "),
        "{message}"
    );
}

#[test]
fn a_missing_validation_set_is_an_error() {
    let message = error(&[("train_a.jsonl", TEXT), ("train_b.jsonl", TEXT)], "");
    assert_eq!(
        message,
        ": no validation set; add it as `val.jsonl` or `val.json`"
    );
}

#[test]
fn a_validation_or_test_set_in_two_files_is_an_error() {
    let sources = [
        ("train_a.jsonl", TEXT),
        ("train_b.jsonl", TEXT),
        ("val.jsonl", TEXT),
    ];
    let message = error(&[&sources[..], &[("val.json", TEXT)]].concat(), "val.json");
    assert!(
        message.starts_with(": the `val` set is here, and again in "),
        "{message}"
    );
    let message = error(
        &[&sources[..], &[("test.json", TEXT), ("test.jsonl", TEXT)]].concat(),
        "test.json",
    );
    assert!(
        message.starts_with(": the `test` set is here, and again in "),
        "{message}"
    );
}

#[test]
fn a_file_without_a_usable_sample_is_an_error() {
    let empty = "{\"text\": \"\"}\n";
    for (name, contents, records) in [
        ("val.jsonl", "", 0),
        ("train_b.jsonl", empty, 1),
        ("test.jsonl", "\n", 0),
    ] {
        let mut files = vec![
            ("train_a.jsonl", TEXT),
            ("train_b.jsonl", TEXT),
            ("val.jsonl", TEXT),
        ];
        files.retain(|file| file.0 != name);
        files.push((name, contents));
        let message = error(&files, name);
        assert!(
            message.starts_with(&format!(": no usable sample in {records} records: ")),
            "{message}"
        );
        assert!(
            message.contains("the first 8 (the max length)"),
            "{message}"
        );
    }
}

#[test]
fn a_length_without_a_label_is_an_error() {
    let error = Corpus::open(Path::new("."), config(1))
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("max length is 1, but must be at least 2;"),
        "{error}"
    );
}

fn values(tensor: Tensor<2, Int>) -> (Vec<i64>, [usize; 2]) {
    let shape = tensor.dims();
    (tensor.into_data().iter::<i64>().collect(), shape)
}

#[test]
fn a_batch_is_padded_on_the_right_and_labels_only_what_is_learned() {
    let first = Sample {
        ids: vec![7, 8, 9],
        learned: vec![true, false, true],
    };
    let second = Sample {
        ids: vec![5, 6],
        learned: vec![true, true],
    };
    let batch = TokenBatch::new(&[&first, &second]);
    let device = Device::flex();
    assert_eq!(values(batch.ids(&device)), (vec![7, 8, 9, 5, 6, 0], [2, 3]));
    assert_eq!(
        values(batch.mask(&device)),
        (vec![1, 1, 1, 1, 1, 0], [2, 3])
    );
    assert_eq!(
        values(batch.labels(&device)),
        (vec![-100, -100, 9, -100, 6, -100], [2, 3])
    );
    assert_eq!(
        (batch.samples(), batch.length(), batch.label_tokens()),
        (2, 3, [1, 1].as_slice())
    );
    let none = TokenBatch::new(&[]);
    assert_eq!((none.samples(), none.length()), (0, 0));
}

fn samples() -> impl Strategy<Value = Vec<Sample>> {
    let sample = proptest::collection::vec((0_u32..100, any::<bool>()), 1..8);
    let sample = sample.prop_map(|tokens| {
        let (ids, learned) = tokens.into_iter().unzip();
        Sample { ids, learned }
    });
    proptest::collection::vec(sample, 1..5)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn padding_changes_no_label(samples in samples()) {
        let rows: Vec<_> = samples.iter().collect();
        let batch = TokenBatch::new(&rows);
        let device = Device::flex();
        let (labels, [rows, length]) = values(batch.labels(&device));
        let (mask, _) = values(batch.mask(&device));
        let (ids, _) = values(batch.ids(&device));
        prop_assert_eq!((rows, length), (samples.len(), batch.length()));
        for (row, sample) in samples.iter().enumerate() {
            let (start, end) = (row * length, (row + 1) * length);
            let tokens = start + sample.ids.len();
            prop_assert_eq!(&labels[start..tokens], &sample.labels().collect::<Vec<_>>()[..]);
            prop_assert!(labels[tokens..end].iter().all(|label| *label == IGNORED));
            prop_assert!(mask[start..tokens].iter().all(|m| *m == 1) && mask[tokens..end].iter().all(|m| *m == 0));
            prop_assert!(ids[start..tokens].iter().zip(&sample.ids).all(|(a, b)| *a == i64::from(*b)));
            let count = labels[start..end].iter().filter(|label| **label != IGNORED).count();
            prop_assert_eq!(count, batch.label_tokens()[row]);
            prop_assert_eq!(count, sample.label_tokens());
        }
    }

    #[test]
    fn the_pieces_of_a_text_are_the_whole_text(text in "[a-z é🎉]{2,40}", max_length in 2_usize..20) {
        let source = source(&format!("{{\"text\": \"{text}\"}}\n"), max_length);
        let whole = ids_of(&text);
        let pieces: Vec<u32> = source.in_memory().unwrap().iter().flat_map(|s| s.ids.clone()).collect();
        prop_assert_eq!(source.skipped, whole.ids.len() - pieces.len());
        prop_assert!(source.skipped <= 1);
        prop_assert_eq!(&pieces[..], &whole.ids[..pieces.len()]);
        let (last, others) = source.in_memory().unwrap().split_last().unwrap();
        prop_assert!(others.iter().all(|s| s.ids.len() == max_length) && last.ids.len() <= max_length);
    }
}
