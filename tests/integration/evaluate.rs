//! Losses on held-out files, and answers to questions.

use std::fs;
use std::path::{Path, PathBuf};

use scalebio::data::{Message, Record, Tokenizer};
use scalebio::train::{Answer, EvaluateConfig, Evaluation, PromptStyle, evaluate};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::examples::{example, printed};

pub(crate) fn stories() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stories260K")
}

fn write(folder: &TempDir, name: &str, records: &[Value]) -> PathBuf {
    let path = folder.path().join(name);
    let lines: String = records.iter().map(|record| format!("{record}\n")).collect();
    fs::write(&path, lines).unwrap();
    path
}

fn close(a: f64, b: f64) -> bool {
    (a - b).abs() <= 1e-5 * b.abs().max(1.0)
}

/// The loss of a text is the one that `score` prints; the other numbers follow from it.
#[test]
fn losses_are_those_of_score_weighted_by_samples_and_by_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let texts = ["Once upon a time there was a little cat.", "Dogs bark."];
    let list = folder.path().join("texts.json");
    fs::write(
        &list,
        json!([{"text": texts[0]}, {"text": texts[1]}]).to_string(),
    )
    .unwrap();
    let (model, list) = (stories(), list.to_str().unwrap().to_owned());
    let scores = printed(&example(
        "score",
        &[model.to_str().unwrap(), "--texts", &list],
    ));
    let scores: Vec<Value> = scores
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();

    let tokenizer = Tokenizer::from_pretrained(&model).unwrap();
    let mut expected = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        // Cut after the last token of the text, so that the end of text, which `score` does not add, is a piece of its own.
        let length = tokenizer.tokens(text).unwrap().len();
        let file = write(
            &folder,
            &format!("text{index}.jsonl"),
            &[json!({"text": text})],
        );
        let report = evaluate(&EvaluateConfig {
            max_length: Some(length),
            ..EvaluateConfig::new(&model, [file])
        });
        let [found] = &report.unwrap().sources[..] else {
            panic!()
        };
        let score = scores[index]["mean_nll"].as_f64().unwrap();
        assert!(close(found.sample_loss, score), "{found:?} {score}");
        assert!(close(found.token_loss, score) && close(found.perplexity, score.exp()));
        assert_eq!(
            (found.samples, found.skipped, found.tokens),
            (1, 1, length - 1)
        );
        expected.push(found.clone());
    }

    let all: Vec<Value> = texts.iter().map(|text| json!({"text": text})).collect();
    let (long, both) = (
        write(&folder, "long.jsonl", &all),
        write(&folder, "both.jsonl", &all[1..]),
    );
    let run = |batch| {
        evaluate(&EvaluateConfig {
            batch,
            ..EvaluateConfig::new(&model, [long.clone(), both.clone()])
        })
        .unwrap()
    };
    let (one, many) = (run(1), run(16));
    let [a, b] = &one.sources[..] else { panic!() };
    assert_eq!((a.name.as_str(), b.name.as_str()), ("long", "both"));
    assert_eq!(
        one.config.max_length,
        Some(512),
        "the positions of the model"
    );
    let tokens = |e: &Evaluation| e.tokens as f64;
    let by_token = (a.token_loss * tokens(a) + b.token_loss * tokens(b)) / (tokens(a) + tokens(b));
    let by_sample = (2.0 * a.sample_loss + b.sample_loss) / 3.0;
    assert!(close(one.overall.token_loss, by_token) && close(one.overall.sample_loss, by_sample));
    assert!(
        (by_token - by_sample).abs() > 1e-3,
        "the two means differ here"
    );
    assert_eq!(
        (one.overall.samples, one.overall.tokens),
        (3, a.tokens + b.tokens)
    );
    for (one, many) in one.sources.iter().zip(&many.sources) {
        assert!(close(one.sample_loss, many.sample_loss) && close(one.token_loss, many.token_loss));
    }
    let table = one.to_string();
    assert!(
        table.lines().count() == 4 && table.contains("sample loss"),
        "{table}"
    );
}

/// The example prints what the function returns.
#[test]
fn the_example_prints_a_table_or_the_report() {
    let folder = tempfile::tempdir().unwrap();
    let file = write(
        &folder,
        "held_out.jsonl",
        &[json!({"text": "Cats sleep all day."})],
    );
    let (model, file) = (stories(), file.to_str().unwrap().to_owned());
    let arguments = [model.to_str().unwrap(), &file];
    let json = printed(&example(
        "evaluate",
        &[&arguments[..], &["--json", "-"]].concat(),
    ));
    let report: Value = serde_json::from_str(&json).unwrap();
    let direct = evaluate(&EvaluateConfig::new(&model, [PathBuf::from(&file)])).unwrap();
    assert_eq!(report, serde_json::to_value(&direct).unwrap());
    let table = printed(&example("evaluate", &arguments));
    assert_eq!(table, direct.to_string());
}

/// A prompt is what comes before the answer in a sample of the same conversation.
#[test]
fn a_chat_prompt_ends_where_the_answer_begins() {
    let folder = tempfile::tempdir().unwrap();
    for file in ["config.json", "model.safetensors", "tokenizer.json"] {
        fs::copy(stories().join(file), folder.path().join(file)).unwrap();
    }
    let template = "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}\
                    {% if add_generation_prompt %}<s>assistant: {% endif %}";
    fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    let tokenizer = Tokenizer::from_pretrained(folder.path()).unwrap();
    let turn = |role: &str, content: &str| Message {
        role: role.to_owned(),
        content: content.to_owned(),
    };
    let messages = vec![turn("user", "Who sleeps?"), turn("assistant", "The cat.")];
    let prompt = tokenizer.chat_prompt(&messages[..1]).unwrap();
    let sample = tokenizer.encode_record(Record::Chat { messages }).unwrap();
    assert_eq!(sample.ids[..prompt.len()], prompt);
    let learned = sample.learned.iter().position(|learned| *learned);
    assert_eq!(learned, Some(prompt.len()));

    let question = json!({"question": "Who sleeps?", "answer": "The cat."});
    let file = write(&folder, "questions.jsonl", &[question]);
    for prompt in [PromptStyle::Chat, PromptStyle::Plain, PromptStyle::Alpaca] {
        let report = evaluate(&EvaluateConfig {
            prompt,
            answer_tokens: 3,
            ..EvaluateConfig::new(folder.path(), [file.clone()])
        });
        let report = report.unwrap();
        let answers = report.overall.answers.unwrap();
        assert_eq!((answers.questions, answers.correct), (1, 0));
        assert_eq!(report.sources[0].samples, 1);
    }
}

/// What is said in the documentation of `Answer`, and what GSM8K and MATH have in their answers.
#[test]
fn answers_are_found_and_compared() {
    let number = |text: &str| Answer::Number(text.to_owned());
    let boxed = |text: &str| Answer::Boxed(text.to_owned());
    for (text, expected) in [
        ("3*4=12, so\n#### 1,200", number("1200")),
        ("#### -5", number("-5")),
        ("#### $18.50 a day\nQuestion: 7", number("18.5")),
        ("There are 3 cats and 12 dogs.", number("12")),
        ("It is 10-4.", number("4")),
        ("It is 10 - 4 = 6.00", number("6")),
        ("minus: -0.0", number("0")),
        (".5 of it", number("0.5")),
        ("-$7", number("-7")),
        ("007", number("7")),
        (
            "no number at  all",
            Answer::Text("no number at all".to_owned()),
        ),
        (
            r"So \boxed{12} or \boxed{\frac{1}{2}}.",
            boxed(r"\frac{1}{2}"),
        ),
        (r"$\boxed{\dfrac12}$", boxed(r"\frac{1}{2}")),
        (r"\boxed{1/2}", boxed(r"\frac{1}{2}")),
        (r"\boxed{-3/4}", boxed(r"-\frac{3}{4}")),
        (r"\boxed{x^{2} + \left(1\right)}", boxed("x^{2}+(1)")),
        (r"\boxed{1{,}000}", boxed("1{,}000")),
        (r"\boxed{10,000\%}", boxed("10000")),
        (r"\boxed{(1,2)}", boxed("(1,2)")),
        (r"\boxed{1,2}", boxed("1,2")),
        (r"\boxed{90^\circ}", boxed("90")),
        (r"\boxed{\text{Evelyn}}.", boxed("Evelyn")),
        (r"\boxed{5.0}", boxed("5")),
        (r"\boxed 5$ ", boxed("5")),
        (r"\fbox{7}", boxed("7")),
        (r"\boxed{\{1\}}", boxed(r"\{1\}")),
        (r"\boxed{1 then 4", number("4")),
    ] {
        assert_eq!(Answer::of(text), expected, "{text}");
    }
    for (right, said, is_right) in [
        ("#### 72", "48 + 24 = 72", true),
        ("#### 72", "The answer is 72. #### 72\nQuestion: 5", true),
        ("#### 72", r"\boxed{72.0} as 3 * 24", true),
        ("#### 72", "72 or 73", false),
        ("#### 72", "none", false),
        (r"\boxed{\frac{1}{2}}", r"I say \boxed{ 1/2 }", true),
        (r"\boxed{\frac{1}{2}}", "1/2", false),
        ("the cat", " the\ncat ", true),
        ("the cat", "the cat sleeps", false),
    ] {
        assert_eq!(
            Answer::of(right).is_given_by(said),
            is_right,
            "{right}: {said}"
        );
    }
}
