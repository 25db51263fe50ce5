//! Conversations: written down with the model's template, learned where the assistant speaks.

use std::fs;
use std::path::Path;

use scalebio::data::{Message, Record, Records, Tokenizer};
use scalebio::{Error, Result};
use serde_json::{Value, json};
use tempfile::TempDir;

const STORIES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/stories260K");

/// The template of SmolLM2-Instruct, but for its system prompt.
const CHAT_ML: &str = "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}\
    {{ '<s>system\nBe nice.</s>\n' }}{% endif %}{{'<s>' + message['role'] + '\n' + message['content'] + '</s>' + '\n'}}\
    {% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}";

/// As Gemma's: no system, roles in turn, contents trimmed; written over several lines.
const STRICT: &str = "{{ bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {{ raise_exception('System role not supported') }}
{%- endif %}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{ raise_exception('Roles must alternate') }}
    {%- endif %}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] %}
    {{- '[' + role + '] ' + message['content'].strip() + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '[model] ' }}
{%- endif %}";

/// A folder with a tokenizer and a template.
fn folder(template: Option<&str>) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let tokenizer = Path::new(STORIES).join("tokenizer.json");
    fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
    let settings = json!({"bos_token": {"content": "<s>"}, "eos_token": "</s>"});
    fs::write(
        folder.path().join("tokenizer_config.json"),
        settings.to_string(),
    )
    .unwrap();
    if let Some(template) = template {
        fs::write(folder.path().join("chat_template.jinja"), template).unwrap();
    }
    folder
}

fn conversation(turns: &[(&str, &str)]) -> Record {
    let message = |(role, content): &(&str, &str)| Message {
        role: (*role).to_owned(),
        content: (*content).to_owned(),
    };
    Record::Chat {
        messages: turns.iter().map(message).collect(),
    }
}

/// The tokens that are learned, and all of them, as text with its special tokens.
fn encoded(template: &str, record: Record) -> Result<(String, String)> {
    let folder = folder(Some(template));
    let tokenizer = Tokenizer::from_pretrained(folder.path())?;
    let sample = tokenizer.encode_record(record)?;
    let spelled = tokenizers::Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let text = |ids: Vec<u32>| -> String {
        let tokens = ids.iter().map(|id| spelled.id_to_token(*id).unwrap());
        let text: String = tokens.collect::<String>().replace('▁', " ");
        text.replace("<0x0A>", "\n")
    };
    let learned = sample.ids.iter().zip(&sample.learned).filter(|(_, l)| **l);
    let learned = learned.map(|(id, _)| *id).collect();
    Ok((text(learned), text(sample.ids)))
}

fn records(line: &Value) -> Result<Record> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("train_chat.jsonl");
    fs::write(&path, line.to_string()).unwrap();
    Records::open(&path).unwrap().next().unwrap()
}

#[test]
fn what_the_assistant_says_is_learned_with_the_mark_that_ends_it() {
    let turns = [
        ("user", "Hi!"),
        ("assistant", "Hello."),
        ("user", "Bye."),
        ("assistant", "See you."),
    ];
    let (learned, whole) = encoded(CHAT_ML, conversation(&turns)).unwrap();
    assert_eq!(learned, "Hello.</s>See you.</s>");
    // The tokenizer writes a space before each stretch between special tokens; it adds no token of its own.
    let plain = whole.replace("<s> ", "<s>").replace("</s> \n", "</s>\n");
    assert_eq!(
        plain,
        "<s>system\nBe nice.</s>\n<s>user\nHi!</s>\n<s>assistant\nHello.</s>\n\
         <s>user\nBye.</s>\n<s>assistant\nSee you.</s>\n"
    );
}

#[test]
fn templates_in_python_style_run_and_may_refuse() {
    let (learned, whole) = encoded(
        STRICT,
        conversation(&[("user", " Hi! "), ("assistant", "Hello.\n")]),
    )
    .unwrap();
    assert_eq!(learned, "Hello.</s>");
    assert!(whole.contains("[model] Hello.</s>"), "{whole}");

    let refused = |turns: &[(&str, &str)]| {
        encoded(STRICT, conversation(turns))
            .unwrap_err()
            .to_string()
    };
    let text = refused(&[("system", "Be nice."), ("assistant", "Yes.")]);
    assert!(text.contains("System role not supported"), "{text}");
    let text = refused(&[("user", "Hi!"), ("user", "Hi?"), ("assistant", "Hello.")]);
    assert!(text.contains("Roles must alternate"), "{text}");
}

#[test]
fn messages_and_share_gpt_are_the_same_conversation() {
    let messages = json!({"messages": [
        {"role": "system", "content": "Be nice."},
        {"role": "user", "content": "Hi!"},
        {"role": "assistant", "content": "Hello."},
    ], "id": 7});
    let turns = json!([
        {"from": "system", "value": "Be nice."},
        {"from": "human", "value": "Hi!"},
        {"from": "gpt", "value": "Hello."},
    ]);
    let expected = conversation(&[
        ("system", "Be nice."),
        ("user", "Hi!"),
        ("assistant", "Hello."),
    ]);
    assert_eq!(records(&messages).unwrap(), expected);
    assert_eq!(
        records(&json!({"conversations": turns.clone()})).unwrap(),
        expected
    );
    assert_eq!(records(&json!({"items": turns})).unwrap(), expected);
}

#[test]
fn conversations_that_are_none_are_refused_with_their_line() {
    for (record, shown) in [
        (json!({"messages": "Hi!"}), "`messages` must be a list"),
        (json!({"messages": []}), "nothing to learn"),
        (
            json!({"messages": [{"role": "user", "content": "Hi!"}]}),
            "nothing to learn",
        ),
        (
            json!({"messages": [{"role": "assistant", "content": null}]}),
            "\"content\"",
        ),
        (
            json!({"messages": [{"from": "gpt", "value": "Hi!"}]}),
            "\"role\"",
        ),
        (
            json!({"conversations": [{"from": "cat", "value": "Meow."}]}),
            "`from` is `cat`",
        ),
        (json!({"messages": [], "text": "Hi!"}), "not clear"),
    ] {
        let error = records(&record).unwrap_err();
        assert!(matches!(error, Error::Record { line: 1, .. }), "{error:?}");
        assert!(error.to_string().contains(shown), "{error}");
    }
}

#[test]
fn a_conversation_needs_a_template_that_can_be_read() {
    let tokenizer = Tokenizer::from_pretrained(folder(None).path()).unwrap();
    let record = conversation(&[("assistant", "Hello.")]);
    let text = tokenizer.encode_record(record).unwrap_err().to_string();
    assert!(text.contains("chat_template.jinja"), "{text}");

    let broken = folder(Some("{% for message in %}"));
    let text = Tokenizer::from_pretrained(broken.path())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("chat_template.jinja") && text.contains("cannot be read"),
        "{text}"
    );

    // What it writes of the first turn depends on the last.
    let contrary = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let turns = [("assistant", "Hello."), ("user", "Hi!")];
    let text = encoded(contrary, conversation(&turns))
        .unwrap_err()
        .to_string();
    assert!(text.contains("turn 1"), "{text}");
}

#[test]
fn a_tokenizer_config_gives_the_end_of_text_and_the_template() {
    let folder = folder(None);
    let path = folder.path().join("tokenizer_config.json");
    let settings = json!({"eos_token": "<unk>", "chat_template": [
        {"name": "tools", "template": "{{ 1 }}"},
        {"name": "default", "template": "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"},
    ]});
    fs::write(&path, settings.to_string()).unwrap();
    let tokenizer = Tokenizer::from_pretrained(folder.path()).unwrap();
    assert_eq!(tokenizer.end_of_text(), Some(0));
    let record = conversation(&[("user", "Hi!"), ("assistant", "Hello.")]);
    let sample = tokenizer.encode_record(record).unwrap();
    assert_eq!(
        (sample.ids.last(), sample.learned.last()),
        (Some(&0), Some(&true))
    );

    fs::write(&path, json!({"eos_token": "<end>"}).to_string()).unwrap();
    let text = Tokenizer::from_pretrained(folder.path())
        .unwrap_err()
        .to_string();
    assert!(
        text.contains("tokenizer_config.json") && text.contains("<end>"),
        "{text}"
    );
}
