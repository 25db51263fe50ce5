//! Tokenizers: the ids are the tokenizer's own, and exactly the learned segments are learned.

use std::path::{Path, PathBuf};

use proptest::prelude::*;
use scalebio::Error;
use scalebio::data::{IGNORED, Record, Sample, Segment, Tokenizer};
use serde_json::{Value, json};
use tempfile::TempDir;

fn segment(text: &str, learned: bool) -> Segment {
    Segment {
        text: text.to_owned(),
        learned,
    }
}

fn prompt(text: &str) -> Segment {
    segment(text, false)
}

fn response(text: &str) -> Segment {
    segment(text, true)
}

fn saved(json: &Value) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    std::fs::write(&path, json.to_string()).unwrap();
    (folder, path)
}

fn tokenizer(json: &Value) -> Tokenizer {
    let (_folder, path) = saved(json);
    Tokenizer::from_file(path).unwrap()
}

/// A BPE of single characters whose merges are given; `</s>` and `<s>` are added if `special` says so.
fn characters(alphabet: &str, merges: &[(&str, &str)], special: &[&str]) -> Value {
    let mut vocabulary: Vec<String> = special.iter().map(|s| (*s).to_owned()).collect();
    vocabulary.extend(alphabet.chars().map(String::from));
    vocabulary.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
    let ids = vocabulary
        .iter()
        .enumerate()
        .map(|(id, token)| (token.clone(), json!(id)));
    let added: Vec<_> = special.iter().enumerate().map(|(id, token)| {
        json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
               "normalized": false, "special": true})
    }).collect();
    json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added, "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
            "vocab": Value::Object(ids.collect()),
            "merges": merges.iter().map(|(a, b)| json!([a, b])).collect::<Vec<_>>()},
    })
}

/// Adds a post-processor that puts the tokens `before` and `after` around the text.
fn with_template(mut json: Value, before: &[(&str, u32)], after: &[(&str, u32)]) -> Value {
    let piece = |token: &(&str, u32)| json!({"SpecialToken": {"id": token.0, "type_id": 0}});
    let mut single: Vec<_> = before.iter().map(piece).collect();
    single.push(json!({"Sequence": {"id": "A", "type_id": 0}}));
    single.extend(after.iter().map(piece));
    let special = before.iter().chain(after).map(|(token, id)| {
        (
            (*token).to_owned(),
            json!({"id": token, "ids": [id], "tokens": [token]}),
        )
    });
    json["post_processor"] = json!({"type": "TemplateProcessing", "single": single,
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": Value::Object(special.collect())});
    json
}

/// The tokens of a sample by name, the learned ones marked with `*`.
fn shown(json: &Value, sample: &Sample) -> String {
    let inner = tokenizers::Tokenizer::from_bytes(json.to_string()).unwrap();
    let tokens = sample.ids.iter().zip(&sample.learned).map(|(id, learned)| {
        format!(
            "{}{}",
            inner.id_to_token(*id).unwrap(),
            if *learned { "*" } else { "" }
        )
    });
    tokens.collect::<Vec<_>>().join("|")
}

fn encoded(json: &Value, segments: &[Segment]) -> String {
    shown(json, &tokenizer(json).encode(segments).unwrap())
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures")
        .join(name)
}

#[test]
fn no_token_merges_across_the_border_of_two_segments() {
    let json = characters("a:)", &[(":", ")")], &[]);
    assert_eq!(encoded(&json, &[response("a:)")]), "a*|:)*");
    assert_eq!(encoded(&json, &[prompt("a:"), response(")")]), "a|:|)*");
    assert_eq!(encoded(&json, &[prompt("a"), response(":)")]), "a|:)*");
    assert_eq!(
        encoded(
            &json,
            &[prompt(":"), response(")"), prompt(":"), response(")a")]
        ),
        ":|)*|:|)*|a*"
    );
    assert_eq!(
        encoded(&json, &[prompt(":"), response(""), prompt(")")]),
        ":|)"
    );
    assert_eq!(encoded(&json, &[]), "");
}

#[test]
fn special_tokens_at_the_start_are_read_and_those_at_the_end_are_learned() {
    let plain = characters("ab", &[], &["<s>", "</s>"]);
    let segments = [prompt("a"), response("b")];
    assert_eq!(encoded(&plain, &segments), "a|b*|</s>*");
    let start = with_template(plain.clone(), &[("<s>", 0)], &[]);
    assert_eq!(encoded(&start, &segments), "<s>|a|b*|</s>*");
    let both = with_template(plain, &[("<s>", 0)], &[("</s>", 1)]);
    assert_eq!(encoded(&both, &segments), "<s>|a|b*|</s>*");
    assert_eq!(
        encoded(&both, &[response("b"), prompt("a")]),
        "<s>|b*|a|</s>"
    );
    assert_eq!(encoded(&both, &[response("")]), "<s>|</s>*");
    // OPT begins a text with its end of text.
    let same = with_template(characters("ab", &[], &["</s>"]), &[("</s>", 0)], &[]);
    assert_eq!(encoded(&same, &segments), "</s>|a|b*|</s>*");
    assert_eq!(encoded(&same, &[response("b")]), "</s>|b*|</s>*");
}

#[test]
fn an_end_of_text_in_the_text_is_not_doubled() {
    let json = characters("ab", &[], &["<s>", "</s>"]);
    assert_eq!(
        encoded(&json, &[prompt("a"), response("b</s>")]),
        "a|b*|</s>*"
    );
    assert_eq!(
        encoded(&json, &[prompt("a</s>"), response("b")]),
        "a|</s>|b*|</s>*"
    );
}

#[test]
fn a_special_token_written_across_a_border_counts_with_the_later_segment() {
    let json = characters("ab", &[], &["<s>", "</s>"]);
    assert_eq!(
        encoded(&json, &[prompt("a</"), response("s>b")]),
        "a|</s>*|b*|</s>*"
    );
    assert_eq!(
        encoded(&json, &[response("a</"), prompt("s>b")]),
        "a*|</s>|b|</s>"
    );
}

#[test]
fn a_space_that_the_tokenizer_puts_before_a_text_comes_once() {
    let mut json = characters("▁ab\n", &[("▁", "a"), ("▁", "b")], &["<s>", "</s>"]);
    json["pre_tokenizer"] =
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    assert_eq!(
        encoded(&json, &[response("a\nb b")]),
        "▁a*|\n*|b*|▁b*|</s>*"
    );
    assert_eq!(
        encoded(&json, &[prompt("a\n"), response("b b")]),
        "▁a|\n|b*|▁b*|</s>*"
    );
    // The older spelling, as in stories260K: a normalizer does it, and there are no words.
    json["pre_tokenizer"] = Value::Null;
    json["normalizer"] = json!({"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"},
        {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]});
    assert_eq!(
        encoded(&json, &[prompt("a\n"), response("b b")]),
        "▁a|\n|b*|▁b*|</s>*"
    );
    assert_eq!(
        encoded(&json, &[prompt(""), response("b b")]),
        "▁b*|▁b*|</s>*"
    );
    assert_eq!(
        encoded(&json, &[prompt("b b"), response("")]),
        "▁b|▁b|</s>*"
    );
}

#[test]
fn a_character_made_of_both_segments_counts_with_the_one_it_starts_in() {
    let mut json = characters("aé", &[], &[]);
    json["normalizer"] = json!({"type": "NFC"});
    assert_eq!(
        encoded(&json, &[prompt("ae"), response("\u{301}a")]),
        "a|é|a*"
    );
}

#[test]
fn truncation_and_padding_of_the_file_are_not_applied() {
    let mut json = characters("ab", &[], &["<s>", "</s>"]);
    json["truncation"] =
        json!({"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0});
    json["padding"] = json!({"strategy": {"Fixed": 9}, "direction": "Right", "pad_to_multiple_of": null,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<s>"});
    assert_eq!(encoded(&json, &[response("abab")]), "a*|b*|a*|b*|</s>*");
}

#[test]
fn the_end_of_text_is_found_by_its_usual_names_or_set() {
    let json = characters("ab", &[], &["<|im_end|>", "</s>"]);
    assert_eq!(tokenizer(&json).end_of_text(), Some(1));
    assert_eq!(
        tokenizer(&json)
            .with_end_of_text("<|im_end|>")
            .unwrap()
            .end_of_text(),
        Some(0)
    );
    assert_eq!(tokenizer(&characters("ab", &[], &[])).end_of_text(), None);
    let (_folder, path) = saved(&json);
    let error = Tokenizer::from_file(&path)
        .unwrap()
        .with_end_of_text("<end>")
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("end of text is `<end>`, but must be a token in the vocabulary of "),
        "{error}"
    );
    assert!(error.contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn a_vocabulary_that_is_too_small_names_the_tokenizer_and_both_sizes() {
    let (_folder, path) = saved(&characters("abc", &[], &["</s>"]));
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(tokenizer.vocabulary_size(), 4);
    tokenizer.check_vocabulary(4).unwrap();
    let error = tokenizer.check_vocabulary(3).unwrap_err().to_string();
    let expected = format!(
        "the model's vocabulary is 3, but must be at least 4, the tokens of {}",
        path.display()
    );
    assert!(error.starts_with(&expected), "{error}");
}

#[test]
fn a_file_that_is_not_a_tokenizer_is_named() {
    let (_folder, path) = saved(&json!({"model": 3}));
    let error = Tokenizer::from_file(&path).unwrap_err();
    assert!(matches!(error, Error::File { .. }));
    assert!(
        error
            .to_string()
            .starts_with(&format!("{}: not a tokenizer.json", path.display())),
        "{error}"
    );
    let missing = path.with_file_name("none.json");
    let error = Tokenizer::from_file(&missing).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(error.to_string().contains("none.json"), "{error}");
}

#[test]
fn text_without_a_token_is_an_error_that_names_the_tokenizer() {
    let json = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
        "pre_tokenizer": null, "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "?"}});
    let (_folder, path) = saved(&json);
    let error = Tokenizer::from_file(&path)
        .unwrap()
        .encode(&[response("b")])
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with(&format!("{}: cannot encode a text:", path.display())),
        "{error}"
    );
}

#[test]
fn stories260k_gives_the_ids_of_hugging_face_and_learns_the_response_only() {
    let path = fixture("stories260K/tokenizer.json");
    let tokenizer = Tokenizer::from_file(&path).unwrap();
    assert_eq!(
        (tokenizer.vocabulary_size(), tokenizer.end_of_text()),
        (512, Some(2))
    );
    // The first text of expected.json, made with transformers; the end of text is ours.
    let text = "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.";
    let ids = [
        1, 403, 407, 261, 378, 432, 383, 286, 261, 376, 298, 315, 421, 395, 317, 426, 338, 401,
        396, 267, 337, 410, 408, 419, 292, 411, 322, 265, 282, 295, 433, 426, 2,
    ];
    assert_eq!(tokenizer.encode(&[response(text)]).unwrap().ids, ids);

    let inner = tokenizers::Tokenizer::from_file(&path).unwrap();
    for output in ["Tom", " two words", "\nnew line", "日本 🎉", ""] {
        let record = Record::Alpaca {
            instruction: "Say é.".to_owned(),
            input: "now".to_owned(),
            output: output.to_owned(),
        };
        let segments = record.into_segments();
        let sample = tokenizer.encode(&segments).unwrap();
        let split = sample.learned.iter().position(|learned| *learned).unwrap();
        assert!(sample.learned[split..].iter().all(|learned| *learned));
        let own_prompt = inner.encode(segments[0].text.as_str(), true).unwrap();
        assert_eq!(sample.ids[..split], *own_prompt.get_ids());
        assert_eq!(sample.ids.last(), Some(&2));
        // Its decoder drops the space before a text, which is only in the first segment.
        let learned = inner.decode(&sample.ids[split..], true).unwrap();
        assert_eq!(learned.trim(), output.trim());
    }
}

#[test]
fn training_twice_gives_the_same_tokenizer_and_saving_keeps_it() {
    // Many ties: words of few letters, each about as frequent as the next.
    let words = |n: u64| {
        (0..n)
            .map(|i| format!("{:o} {:b}aab ", i * i % 977, i % 61))
            .collect::<String>()
    };
    let texts: Vec<_> = (20..60).map(words).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("tokenizer.json");
    let train = || Tokenizer::train(texts.iter(), 900).unwrap();
    let first = train();
    first.save(&path).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    for _ in 0..5 {
        train().save(&path).unwrap();
        assert!(std::fs::read(&path).unwrap() == bytes);
    }
    let files: Vec<_> = std::fs::read_dir(folder.path()).unwrap().collect();
    assert_eq!(files.len(), 1);
    let again = Tokenizer::from_file(&path).unwrap();
    assert_eq!(again.end_of_text(), first.end_of_text());
    assert_eq!(again.vocabulary_size(), first.vocabulary_size());
    for text in &texts {
        let segments = [response(text)];
        assert_eq!(
            again.encode(&segments).unwrap(),
            first.encode(&segments).unwrap()
        );
    }
}

#[test]
fn a_trained_tokenizer_has_the_vocabulary_asked_for_and_knows_every_byte() {
    let tokenizer = Tokenizer::train(["low lower lowest low lower"].into_iter(), 260).unwrap();
    assert_eq!(
        (tokenizer.vocabulary_size(), tokenizer.end_of_text()),
        (260, Some(0))
    );
    let sample = tokenizer.encode(&[response("🎉")]).unwrap();
    assert_eq!(sample.ids.len(), 5);
    assert_eq!(sample.labels().filter(|label| *label != IGNORED).count(), 4);
    assert_eq!(sample.label_tokens(), 4);
}

#[test]
fn a_vocabulary_without_room_for_the_bytes_is_refused() {
    let error = Tokenizer::train(["a"].into_iter(), 256)
        .unwrap_err()
        .to_string();
    assert!(
        error.starts_with("vocabulary is 256, but must be at least 257;"),
        "{error}"
    );
}

#[test]
fn a_tokenizer_that_cannot_be_saved_names_the_file() {
    let tokenizer = Tokenizer::train(["a"].into_iter(), 257).unwrap();
    let error = tokenizer.save("/nowhere/tokenizer.json").unwrap_err();
    assert!(
        matches!(error, Error::Io { .. }) && error.to_string().contains("/nowhere/tokenizer.json"),
        "{error}"
    );
}

#[test]
fn very_long_runs_of_one_character_are_no_problem() {
    let tokenizer = Tokenizer::train(["a  b"].into_iter(), 257).unwrap();
    for run in [
        " ".repeat(1_200_000),
        "\n".repeat(300_000),
        "a".repeat(300_000),
    ] {
        let sample = tokenizer.encode(&[prompt(&run), response(&run)]).unwrap();
        assert_eq!(sample.ids.len(), 2 * run.len() + 1);
        assert_eq!(sample.label_tokens(), run.len() + 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn each_byte_is_learned_as_its_segment_says(
        segments in proptest::collection::vec(("[ a-c:)\n'é日🎉\u{301}]{0,8}", any::<bool>()), 1..6),
    ) {
        static TRAINED: std::sync::OnceLock<(Tokenizer, tokenizers::Tokenizer)> = std::sync::OnceLock::new();
        let (trained, inner) = TRAINED.get_or_init(|| {
            let tokenizer = Tokenizer::train(["ab abc :) :)\n\n  a's é日 🎉🎉 ".repeat(9)].into_iter(), 300).unwrap();
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("tokenizer.json");
            tokenizer.save(&path).unwrap();
            (tokenizer, tokenizers::Tokenizer::from_file(path).unwrap())
        });
        let segments: Vec<_> = segments.iter().map(|(text, learned)| segment(text, *learned)).collect();
        let sample = trained.encode(&segments).unwrap();
        // A byte-level token has a character for each byte.
        let (end, tokens) = sample.ids.split_last().unwrap();
        prop_assert_eq!(Some(*end), trained.end_of_text());
        let bytes: Vec<bool> = tokens.iter().zip(&sample.learned).flat_map(|(id, learned)| {
            let token = inner.id_to_token(*id).unwrap();
            std::iter::repeat_n(*learned, token.chars().count())
        }).collect();
        let expected: Vec<bool> = segments.iter().flat_map(|s| std::iter::repeat_n(s.learned, s.text.len())).collect();
        prop_assert_eq!(bytes, expected);
        let text: String = segments.iter().map(|s| s.text.as_str()).collect();
        prop_assert_eq!(inner.decode(tokens, false).unwrap(), text);
    }

    #[test]
    fn without_merges_a_border_changes_no_token(
        texts in proptest::collection::vec("[ aA\n\tﬁİé日🎉\u{301}\u{308}Å]{0,6}", 1..5),
        normalizer in 0_usize..5,
    ) {
        let normalizers = [
            json!([]),
            json!([{"type": "NFC"}]),
            json!([{"type": "NFKD"}, {"type": "StripAccents"}]),
            json!([{"type": "NFKC"}, {"type": "Lowercase"}]),
            json!([{"type": "Strip", "strip_left": true, "strip_right": true}, {"type": "Prepend", "prepend": " "}]),
        ];
        let (_folder, path) = saved(&json!({}));
        Tokenizer::train(std::iter::empty::<&str>(), 257).unwrap().save(&path).unwrap();
        let mut json: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        json["normalizer"] = json!({"type": "Sequence", "normalizers": normalizers[normalizer]});
        std::fs::write(&path, json.to_string()).unwrap();

        let segments: Vec<_> = texts.iter().map(|t| response(t)).collect();
        let sample = Tokenizer::from_file(&path).unwrap().encode(&segments).unwrap();
        let whole = tokenizers::Tokenizer::from_file(&path).unwrap().encode(texts.concat(), true).unwrap();
        prop_assert_eq!(&sample.ids[..sample.ids.len() - 1], whole.get_ids());
        prop_assert!(sample.learned.iter().all(|learned| *learned));
    }
}

#[test]
fn dropout_of_merges_is_switched_off_so_that_a_text_has_one_encoding() {
    let mut json = characters("abc", &[("a", "b"), ("ab", "c")], &["</s>"]);
    let whole = tokenizer(&json).encode(&[response("abcabcabc")]).unwrap();
    json["model"]["dropout"] = json!(0.5);
    let with_dropout = tokenizer(&json);
    for _ in 0..20 {
        assert_eq!(
            with_dropout.encode(&[response("abcabcabc")]).unwrap(),
            whole
        );
    }
}
