//! Reading records: every form of file, and an error that names file and line for each that is wrong.

use std::path::PathBuf;

use proptest::prelude::*;
use scalebio::data::{Record, Records};
use scalebio::{Error, Result};
use serde_json::json;
use tempfile::TempDir;

fn file(name: &str, contents: impl AsRef<[u8]>) -> (TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, contents).unwrap();
    (folder, path)
}

fn read(name: &str, contents: impl AsRef<[u8]>) -> Result<Vec<Record>> {
    let (_folder, path) = file(name, contents);
    Records::open(&path)?.collect()
}

/// Line and message of the error that reading gives.
fn error(name: &str, contents: impl AsRef<[u8]>) -> (usize, String) {
    let error = read(name, contents).unwrap_err();
    let shown = error.to_string();
    let Error::Record {
        path,
        line,
        message,
    } = error
    else {
        panic!("not an error of a record: {shown}");
    };
    assert_eq!(path.file_name().unwrap(), name);
    assert_eq!(shown, format!("{}:{line}: {message}", path.display()));
    (line, message)
}

fn text(text: &str) -> Record {
    Record::Text {
        text: text.to_owned(),
    }
}

fn alpaca(instruction: &str, input: &str, output: &str) -> Record {
    Record::Alpaca {
        instruction: instruction.to_owned(),
        input: input.to_owned(),
        output: output.to_owned(),
    }
}

#[test]
fn a_jsonl_file_holds_a_record_a_line() {
    let contents =
        "{\"text\": \"a\\nb\"}\r\n\n   \n{\"instruction\":\"i\",\"input\":\"\",\"output\":\"o\"}";
    let expected = [text("a\nb"), alpaca("i", "", "o")];
    assert_eq!(read("a.jsonl", contents).unwrap(), expected);
    assert_eq!(read("a.json", contents).unwrap(), expected);
}

#[test]
fn a_json_file_holds_an_array_laid_out_in_any_way() {
    let records =
        json!([{"text": "[{\"}, \\\" ]"}, {"instruction": "i", "input": "n", "output": "o"}]);
    let expected = [text("[{\"}, \\\" ]"), alpaca("i", "n", "o")];
    let pretty = serde_json::to_string_pretty(&records).unwrap();
    assert_eq!(read("a.json", &pretty).unwrap(), expected);
    assert_eq!(
        read("a.json", format!("\n  {records} \n")).unwrap(),
        expected
    );
    assert_eq!(read("a.json", "[ ]").unwrap(), []);
    assert_eq!(read("a.json", "").unwrap(), []);
}

#[test]
fn a_byte_order_mark_at_the_start_is_tolerated() {
    assert_eq!(
        read("a.jsonl", "\u{feff}{\"text\":\"a\"}").unwrap(),
        [text("a")]
    );
    assert_eq!(
        read("a.json", "\u{feff}[{\"text\":\"a\"}]").unwrap(),
        [text("a")]
    );
}

#[test]
fn other_fields_are_ignored_and_the_input_may_be_missing() {
    let contents = r#"{"text": "a", "id": 7, "input": ["x"]}"#;
    assert_eq!(read("a.jsonl", contents).unwrap(), [text("a")]);
    let contents = r#"{"instruction": "i", "output": "o", "source": null}"#;
    assert_eq!(read("a.jsonl", contents).unwrap(), [alpaca("i", "", "o")]);
}

#[test]
fn a_file_that_is_missing_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("none.jsonl");
    let error = Records::open(&path).unwrap_err();
    assert!(matches!(error, Error::Io { .. }));
    assert!(
        error.to_string().starts_with(path.to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn a_line_that_is_not_json_is_named_with_its_column() {
    let contents = "{\"text\": \"a\"}\n\n{\"text\": nope}\n";
    assert_eq!(
        error("a.jsonl", contents),
        (3, "not JSON: expected ident, at column 11".to_owned())
    );
    assert_eq!(error("a.json", contents).0, 3);
    let (line, message) = error("a.jsonl", "{\"text\": \"a\"} {}\n");
    assert_eq!(
        (line, message.as_str()),
        (1, "not JSON: trailing characters, at column 15")
    );
    let (line, message) = error("a.jsonl", "{\"text\": \"a\"}\n{\"text\": \"b\n");
    assert_eq!(line, 2);
    assert!(
        message.starts_with("not JSON: EOF while parsing a string"),
        "{message}"
    );
}

#[test]
fn a_record_of_an_array_that_is_not_json_is_named_with_its_line() {
    let contents = "[\n  {\n    \"text\": \"a\"\n  },\n  {\n    \"text\": \"b\n  }\n]";
    let (line, message) = error("a.json", contents);
    assert_eq!(line, 6);
    assert!(
        message.starts_with("not JSON: control character"),
        "{message}"
    );
    assert_eq!(
        error("a.json", "[\n{\"text\": \"a\"},\n {\"text\" \"b\"}]"),
        (3, "not JSON: expected `:`, at column 10".to_owned())
    );
}

#[test]
fn an_array_that_is_not_well_formed_is_named_with_its_line() {
    let cases = [
        ("[\n{\"text\":\"a\"}\n", 3, "the file ends before the `]`"),
        (
            "[\n{\"text\":\"a\"},\n",
            3,
            "expected a record, at column 1",
        ),
        (
            "[\n{\"text\":\"a\"},\n]",
            3,
            "expected a record, at column 1",
        ),
        ("[,]", 1, "expected a record, at column 2"),
        (
            "[{\"text\":\"a\"}\n{\"text\":\"b\"}]",
            2,
            "trailing characters, at column 1",
        ),
        (
            "[{\"text\":\"a\"}\n}]",
            2,
            "expected `,` or `]` after a record, at column 1",
        ),
        (
            "[{\"text\":\"a\"}]\n\n x",
            3,
            "something follows the end of the array, at column 2",
        ),
        ("[{\"text\":\"a\"", 1, "EOF"),
        ("[", 1, "the file ends before the `]`"),
    ];
    for (contents, line, part) in cases {
        let (found, message) = error("a.json", contents);
        assert!(
            found == line && message.contains(part),
            "{contents:?}: {found}: {message}"
        );
    }
}

#[test]
fn a_record_that_is_not_an_object_is_named() {
    let (line, message) = error("a.jsonl", "{\"text\": \"a\"}\n[1]\n");
    assert_eq!(line, 2);
    assert!(
        message.starts_with(
            "a record must be an object, but this is an array; a record is {\"text\"}"
        ),
        "{message}"
    );
    for (value, kind) in [
        ("1", "a number"),
        ("\"a\"", "a string"),
        ("null", "null"),
        ("true", "a boolean"),
    ] {
        let (line, message) = error("a.json", format!("[\n\n{value}]"));
        assert!(
            line == 3 && message.contains(&format!("but this is {kind};")),
            "{message}"
        );
    }
}

#[test]
fn a_missing_field_is_named() {
    let (line, message) = error("a.jsonl", "\n{\"instruction\": \"i\", \"input\": \"\"}");
    assert_eq!(line, 2);
    assert!(
        message.starts_with("the field `output` is missing; a record is"),
        "{message}"
    );
    let (_, message) = error("a.jsonl", "{\"output\": \"o\"}");
    assert!(
        message.starts_with("the field `instruction` is missing"),
        "{message}"
    );
}

#[test]
fn a_field_of_the_wrong_type_is_named() {
    let contents = "[\n  {\"text\": \"a\"},\n  {\n    \"text\": 3\n  }\n]";
    assert_eq!(
        error("a.json", contents),
        (3, "`text` must be a string, but is a number".to_owned())
    );
    let (line, message) = error(
        "a.jsonl",
        r#"{"instruction": "i", "input": null, "output": "o"}"#,
    );
    assert_eq!(
        (line, message.as_str()),
        (1, "`input` must be a string, but is null")
    );
}

#[test]
fn an_alpaca_record_may_repeat_itself_as_text_as_in_alpacas_own_file() {
    let line = "{\"instruction\": \"i\", \"input\": \"\", \"output\": \"o\", \"text\": \"i o\"}";
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    std::fs::write(&path, line).unwrap();
    let record = Records::open(&path).unwrap().next().unwrap().unwrap();
    assert!(matches!(record, Record::Alpaca { output, .. } if output == "o"));
}

#[test]
fn a_record_of_both_forms_or_of_neither_is_refused() {
    let (line, message) = error("a.jsonl", "{\"text\": \"a\", \"output\": \"o\"}");
    assert!(
        line == 1 && message.contains("its form is not clear"),
        "{message}"
    );
    let (line, message) = error("a.jsonl", "{\"text\": \"a\"}\n{\"txt\": \"a\"}");
    assert!(
        line == 2 && message.contains("neither `text` nor `instruction`"),
        "{message}"
    );
}

#[test]
fn text_that_is_not_utf8_is_named_with_its_line_and_column() {
    let (line, message) = error("a.jsonl", b"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n");
    assert_eq!(line, 2);
    assert!(
        message.starts_with("not UTF-8: invalid byte at column 11;"),
        "{message}"
    );
    let (line, message) = error("a.json", b"[{\"text\": \"a\"}, {\n \"text\": \"\xff\"}]");
    assert_eq!(line, 2);
    assert!(message.contains("at column 11;"), "{message}");
    let (line, message) = error("a.json", b"[{\"text\": \"a\"}, {\"text\": \"\xff\"}]");
    assert_eq!(line, 1);
    assert!(message.contains("at column 27;"), "{message}");
}

#[test]
fn reading_ends_after_an_error() {
    let (_folder, path) = file("a.jsonl", "{}\n{\"text\": \"a\"}\n");
    let mut records = Records::open(&path).unwrap();
    assert!(records.next().unwrap().is_err());
    assert!(records.next().is_none());
}

fn any_text() -> impl Strategy<Value = String> {
    proptest::collection::vec(any::<char>(), 0..12).prop_map(String::from_iter)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..Default::default() })]

    #[test]
    fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = read("a.jsonl", &bytes);
        let _ = read("a.json", &bytes);
        let _ = read("a.json", [b"[".as_slice(), &bytes].concat());
    }

    #[test]
    fn a_damaged_file_never_panics_and_errors_lie_inside_it(at in 0_usize..1000, byte in any::<u8>()) {
        let records = json!([{"text": "a \"quoted\" \\ word"}, {"instruction": "i", "input": "[", "output": "é"}]);
        let mut bytes = serde_json::to_vec_pretty(&records).unwrap();
        let at = at % bytes.len();
        bytes[at] = byte;
        let lines = bytes.iter().filter(|b| **b == b'\n').count() + 1;
        if let Err(Error::Record { line, .. }) = read("a.json", &bytes) {
            prop_assert!((1..=lines).contains(&line));
        }
    }

    #[test]
    fn all_layouts_give_the_same_records(texts in proptest::collection::vec(any_text(), 0..6)) {
        let expected: Vec<_> = texts.iter().map(|t| text(t)).collect();
        let values: Vec<_> = texts.iter().map(|t| json!({"text": t})).collect();
        let lines: String = values.iter().map(|v| format!("{v}\n")).collect();
        prop_assert_eq!(&read("a.jsonl", &lines).unwrap(), &expected);
        prop_assert_eq!(&read("a.json", &lines).unwrap(), &expected);
        prop_assert_eq!(&read("a.json", serde_json::to_vec(&values).unwrap()).unwrap(), &expected);
        prop_assert_eq!(&read("a.json", serde_json::to_vec_pretty(&values).unwrap()).unwrap(), &expected);
    }

    #[test]
    fn the_line_of_a_bad_record_in_an_array_is_where_it_starts(before in proptest::collection::vec(any_text(), 0..6)) {
        let mut values: Vec<_> = before.iter().map(|t| json!({"text": t, "more": [t, {"x": 1}]})).collect();
        values.push(json!({"bad": true}));
        // A record of the pretty layout takes 9 lines: braces 2, text 1, more 6.
        let pretty = serde_json::to_vec_pretty(&values).unwrap();
        prop_assert_eq!(error("a.json", pretty).0, 2 + 9 * before.len());
    }
}
