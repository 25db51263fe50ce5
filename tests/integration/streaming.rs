//! Sources that are larger than memory may be: what is read as it is drawn is what would be held in memory.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::thread;
use std::time::SystemTime;

use proptest::prelude::*;
use scalebio::data::{Source, TokenBatch, Tokenizer};
use scalebio::reweight::{Pick, Samples, TokenSources};
use scalebio::train::{Experiment, FinetuneConfig, Finetuning, ReweightConfig};
use serde_json::{Value, json};
use tempfile::tempdir;

use crate::evaluate::stories;
use crate::resume_training::{data, metrics};

#[cfg(target_os = "linux")]
mod memory;

const TEMPLATE: &str = "{% for message in messages %}<s>{{ message['role'] + '\n' + message['content'] }}</s>\n\
    {% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}";

/// Tokenizers like those of Llama, GPT-2 and Qwen, which composes characters, all with a chat template.
fn tokenizers() -> &'static [Tokenizer; 3] {
    static TOKENIZERS: OnceLock<[Tokenizer; 3]> = OnceLock::new();
    TOKENIZERS.get_or_init(|| {
        let llama = Tokenizer::from_file(stories().join("tokenizer.json")).unwrap();
        let words = || records().into_iter().cycle().take(100);
        let gpt2 = Tokenizer::train(words(), 300).unwrap();
        let qwen = Tokenizer::train(words(), 280).unwrap();
        [
            (llama, Value::Null),
            (gpt2, Value::Null),
            (qwen, json!({"type": "NFC"})),
        ]
        .map(|(tokenizer, normalizer)| {
            let folder = tempdir().unwrap();
            let file = folder.path().join("tokenizer.json");
            tokenizer.save(&file).unwrap();
            if !normalizer.is_null() {
                let json = fs::read(&file).unwrap();
                let mut json: Value = serde_json::from_slice(&json).unwrap();
                json["normalizer"] = normalizer;
                fs::write(&file, json.to_string()).unwrap();
            }
            fs::write(folder.path().join("chat_template.jinja"), TEMPLATE).unwrap();
            Tokenizer::from_pretrained(folder.path()).unwrap()
        })
    })
}

/// The error of a source in memory, or nothing if it and the streamed one have the same samples.
fn compare(path: &Path, length: usize, cache: Option<&Path>) -> Option<String> {
    let [one, two, three] = tokenizers();
    let error = compare_with(one, path, length, None);
    let error = compare_with(two, path, length, cache).or(error);
    compare_with(three, path, length, None).or(error)
}

fn compare_with(
    tokenizer: &Tokenizer,
    path: &Path,
    length: usize,
    cache: Option<&Path>,
) -> Option<String> {
    let held = Source::read("a", path, tokenizer, length);
    let streamed = Source::stream("a", path, tokenizer, length, cache);
    let (held, streamed) = match (held, streamed) {
        (Err(held), Err(streamed)) => {
            assert_eq!(held.to_string(), streamed.to_string());
            return Some(held.to_string());
        }
        (held, streamed) => (held.unwrap(), streamed.unwrap()),
    };
    assert_eq!(
        (held.records, held.samples.len(), held.skipped),
        (streamed.records, streamed.samples.len(), streamed.skipped)
    );
    assert!(held.samples.longest() <= streamed.samples.longest());
    assert!(streamed.samples.longest() <= length);
    assert!(streamed.in_memory().is_err());
    let samples = held.in_memory().unwrap();
    let streamed = TokenSources::new(vec![streamed]);
    for (index, sample) in samples.iter().enumerate() {
        let batch = streamed.batch(&[Pick { source: 0, index }]).unwrap();
        assert_eq!(batch, TokenBatch::new(&[sample]), "sample {index}");
    }
    None
}

/// Texts that are cut into pieces, prompts that fill the length, conversations, and records that give nothing.
fn records() -> Vec<String> {
    let text = |words: usize| json!({"text": "word and ".repeat(words)}).to_string();
    let alpaca = |words: usize| {
        let instruction = "do this ".repeat(words);
        json!({"instruction": instruction, "input": "", "output": "it is done"}).to_string()
    };
    let chat = |words: usize| {
        let question = "why ".repeat(words);
        json!({"messages": [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "because of that, and of this too"},
        ]})
        .to_string()
    };
    let lengths = [1, 3, 4, 5, 8, 16, 30, 60, 100];
    let mut records: Vec<_> = lengths
        .iter()
        .flat_map(|&n| [text(n), alpaca(n), chat(n)])
        .collect();
    records.extend(
        [
            r#"{"text": ""}"#,
            r#"{"text": "a"}"#,
            r#"{"text": "é 語 \n \u00e9"}"#,
        ]
        .map(str::to_owned),
    );
    records
}

/// Whatever the layout of the file: line breaks of both kinds, blank lines, space, a byte-order mark, no line break at the end,
/// arrays on one line or many.
#[test]
fn a_streamed_source_has_the_samples_of_one_in_memory() {
    let records = records();
    let folder = tempdir().unwrap();
    let layouts = [
        ("lines.jsonl", records.join("\n")),
        ("ended.jsonl", records.join("\n") + "\n"),
        ("crlf.jsonl", records.join("\r\n\r\n") + "\r\n"),
        (
            "blank.jsonl",
            format!("\n \n{}\n\n\t\n", records.join("\n\n \n  ")),
        ),
        ("mark.jsonl", format!("\u{feff}{}", records.join(" \n"))),
        ("array.json", format!("[{}]", records.join(","))),
        (
            "pretty.json",
            format!(" [\n  {}\n]\n", records.join(" ,\r\n\n  ")),
        ),
        ("lines.json", records.join("\n")),
        ("many.jsonl", format!("{}\n", records.join("\n")).repeat(40)), // more than a thread takes at a time
    ];
    for (name, text) in layouts {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        for length in [2, 7, 24, 200] {
            assert_eq!(compare(&path, length, None), None, "{name} {length}");
        }
    }
}

/// The first bad record is the error, with its line, however many threads read ahead of it.
#[test]
fn a_bad_record_is_the_same_error_in_both() {
    let folder = tempdir().unwrap();
    let good = records().join("\n") + "\n";
    for (before, bad, after, part) in [
        (0, "{\"text\": 7}", 0, "a.jsonl:1: `text` must be a string"),
        (3, "{\"text\": \"a\"", 3, "a.jsonl:91: not JSON"),
        (30, "[1]", 30, "a.jsonl:901: a record must be an object"),
        (
            1,
            "{\"messages\": [{\"role\": \"robot\", \"content\": \"a\"}]}",
            40,
            "a.jsonl:31: ",
        ),
    ] {
        let path = folder.path().join("a.jsonl");
        let text = format!("{}{bad}\n{}{{\n", good.repeat(before), good.repeat(after));
        fs::write(&path, text).unwrap();
        let error = compare(&path, 24, None).expect("an error");
        assert!(error.contains(part), "{error}");
    }
    let path = folder.path().join("b.jsonl");
    fs::write(&path, "{\"text\": \"\"}\n\n").unwrap();
    let error = compare(&path, 24, None).expect("an error");
    assert!(error.contains("no usable sample in 1 records"), "{error}");
    let path = folder.path().join("c.json");
    fs::write(&path, format!("[{}, {{}}", records().join(","))).unwrap();
    let error = compare(&path, 24, None).expect("an error");
    assert!(
        error.contains("neither `text` nor `instruction`"),
        "{error}"
    );
}

/// Two streamed sources in a folder with the settings of a run.
fn experiment(data: &Path, index: Option<PathBuf>, stream: Option<bool>) -> ReweightConfig {
    let mut config = ReweightConfig::new(data);
    config.model = Some(stories());
    (config.steps, config.batch, config.max_length) = (9, 4, 12);
    config.checkpoint_minutes = None;
    (config.stream, config.index) = (stream, index);
    config
}

type Change = fn(&mut ReweightConfig);

/// Weights, metrics and the order of samples, with micro-batches, two threads and more than an epoch; also of a run that was
/// resumed, whose checkpoint counts the draws that were made and not those that were read ahead.
#[test]
fn a_streamed_run_writes_the_files_of_one_in_memory() {
    let data = data();
    let changes: [Change; 3] = [
        |_| {},
        |c| (c.micro_batch, c.lisa_blocks, c.lisa_period) = (Some(3), Some(1), 2),
        |c| (c.batch, c.parallel, c.seed) = (11, true, 3),
    ];
    for change in changes {
        let out = tempdir().unwrap();
        let run = |name: &str, stream, stop: Option<usize>| {
            let folder = out.path().join(name);
            let index = Some(out.path().join("index"));
            let mut config = experiment(data.path(), index, Some(stream));
            change(&mut config);
            let mut run = Experiment::open(config).unwrap().reweight(&folder).unwrap();
            if let Some(stop) = stop {
                run.by_ref().take(stop).for_each(|step| drop(step.unwrap()));
                run.checkpoint().unwrap();
                run.by_ref().take(2).for_each(|step| drop(step.unwrap())); // lost
                drop(run);
                let config = ReweightConfig::read(&folder).unwrap();
                run = Experiment::open(config).unwrap().resume(&folder).unwrap();
            }
            run.by_ref().for_each(|step| drop(step.unwrap()));
            (
                fs::read_to_string(folder.join("weights.json")).unwrap(),
                metrics(&folder),
            )
        };
        let held = run("held", false, None);
        assert!(!out.path().join("index").exists());
        assert_eq!(run("streamed", true, None), held);
        assert_eq!(fs::read_dir(out.path().join("index")).unwrap().count(), 3);
        assert_eq!(run("resumed", true, Some(4)), held);
    }
}

/// A training on one file, too.
#[test]
fn a_streamed_finetuning_takes_the_steps_of_one_in_memory() {
    let data = data();
    let out = tempdir().unwrap();
    let losses = |stream: bool| {
        let mut config = FinetuneConfig::new(data.path().join("train_b.jsonl"));
        config.model = Some(stories());
        (config.steps, config.batch, config.max_length) = (7, 4, 12);
        (config.stream, config.index) = (Some(stream), Some(out.path().join("index")));
        let run = Finetuning::start(config, out.path().join(stream.to_string())).unwrap();
        run.map(|step| step.map(|step| (step.loss, step.tokens)).unwrap())
            .collect::<Vec<_>>()
    };
    assert_eq!(losses(false), losses(true));
    assert_eq!(fs::read_dir(out.path().join("index")).unwrap().count(), 1);
}

/// Sources of 256 MiB together are held in memory unless asked for otherwise, larger ones are streamed.
#[test]
fn large_sources_are_streamed_unless_asked_for_otherwise() {
    let data = data();
    let is_streamed = |stream| {
        let experiment = Experiment::open(experiment(data.path(), None, stream)).unwrap();
        let streamed = experiment.sources().iter().map(|s| s.in_memory().is_err());
        streamed.collect::<Vec<_>>()
    };
    assert_eq!(is_streamed(None), [false; 3]);
    assert_eq!(is_streamed(Some(true)), [true; 3]);
    let path = data.path().join("train_b.jsonl");
    let small = fs::read(&path).unwrap();
    let blank = " ".repeat((1 << 20) - 1) + "\n";
    fs::write(&path, [&small[..], blank.repeat(256).as_bytes()].concat()).unwrap();
    assert_eq!(is_streamed(None), [true; 3]);
    assert_eq!(is_streamed(Some(false)), [false; 3]);
}

fn modified(path: &Path) -> SystemTime {
    fs::metadata(path).unwrap().modified().unwrap()
}

fn set_modified(path: &Path, time: SystemTime) {
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(time)
        .unwrap();
}

/// A source with the index in a folder, and the only file in it.
fn indexed(folder: &Path) -> (PathBuf, PathBuf, PathBuf) {
    let (path, cache) = (folder.join("a.jsonl"), folder.join("runs/index"));
    fs::write(&path, records().join("\n")).unwrap();
    assert_eq!(compare(&path, 24, Some(&cache)), None);
    let file = fs::read_dir(&cache)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    (path, cache, file)
}

/// The index of a file is read and not made again as long as size, time, tokenizer and length are the same: a file that was
/// spoilt under it opens, and each draw of a sample that is not there any more is an error that says so.
#[test]
fn an_index_is_made_once() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let (size, time, made) = (
        fs::metadata(&path).unwrap().len(),
        modified(&path),
        modified(&file),
    );
    fs::write(&path, vec![b' '; size as usize]).unwrap();
    let [other, tokenizer, _] = tokenizers();
    let open = |length| Source::stream("a", &path, tokenizer, length, Some(&cache));
    set_modified(&path, time);
    let source = open(24).unwrap();
    assert_eq!(modified(&file), made);
    assert!(open(25).is_err(), "another length");
    assert!(Source::stream("a", &path, other, 24, Some(&cache)).is_err());
    let source = TokenSources::new(vec![source]);
    let error = source
        .batch(&[Pick {
            source: 0,
            index: 0,
        }])
        .unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("a.jsonl: record 1, at byte 0, changed since"),
        "{text}"
    );
    set_modified(&path, SystemTime::now());
    assert!(open(24).is_err(), "another time");
}

/// A cut or changed file of an index, one of another file, and a folder that cannot be one: the index is made again, and right.
#[test]
fn a_damaged_index_is_made_again() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let whole = fs::read(&file).unwrap();
    let other = folder.path().join("b.jsonl");
    fs::write(&other, "{\"text\": \"something else\"}").unwrap();
    let elsewhere = folder.path().join("elsewhere");
    assert_eq!(compare(&other, 24, Some(&elsewhere)), None);
    let others = fs::read_dir(&elsewhere)
        .unwrap()
        .next()
        .unwrap()
        .unwrap()
        .path();
    let mut damaged = vec![Vec::new(), whole[..8].to_vec(), fs::read(others).unwrap()];
    damaged.push([&whole[..], b"0"].concat());
    for place in (0..whole.len()).step_by(whole.len() / 40) {
        damaged.push(whole[..place].to_vec());
        let mut flipped = whole.clone();
        flipped[place] ^= 1;
        damaged.push(flipped);
    }
    for bytes in damaged {
        fs::write(&file, bytes).unwrap();
        assert_eq!(compare(&path, 24, Some(&cache)), None);
        assert_eq!(fs::read(&file).unwrap(), whole);
    }
    assert_eq!(compare(&path, 24, Some(&path)), None); // a file, not a folder
}

/// Runs that start at the same time and make the same index all get it, and leave a whole one.
#[test]
fn indices_may_be_made_at_the_same_time() {
    let folder = tempdir().unwrap();
    let (path, cache, file) = indexed(folder.path());
    let whole = fs::read(&file).unwrap();
    for _ in 0..5 {
        fs::remove_file(&file).unwrap();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| assert_eq!(compare(&path, 24, Some(&cache)), None));
            }
        });
        let left = fs::read(&file).unwrap_or_default();
        assert_eq!(compare(&path, 24, Some(&cache)), None);
        assert!(left == whole || fs::read(&file).unwrap() == whole);
    }
}

/// A file that is written to or removed in the run ends the run with an error that names it, though its samples are read in
/// other threads; what was drawn before stands, and the run can go on when the file is back.
#[test]
fn a_file_that_changes_in_the_run_is_an_error() {
    let data = data();
    let path = data.path().join("train_b.jsonl");
    let (bytes, time) = (fs::read(&path).unwrap(), modified(&path));
    let spoil: [(fn(&Path), &str); 3] = [
        (
            |path| fs::remove_file(path).unwrap(),
            "train_b.jsonl: No such file",
        ),
        (
            |path| fs::write(path, "").unwrap(),
            "train_b.jsonl: changed since its records were indexed",
        ),
        (
            |path| set_modified(path, SystemTime::UNIX_EPOCH),
            "train_b.jsonl: changed since its records were indexed",
        ),
    ];
    for (spoil, message) in spoil {
        let out = tempdir().unwrap();
        let mut config = experiment(data.path(), None, Some(true));
        config.checkpoint_steps = Some(1);
        let experiment = Experiment::open(config).unwrap();
        let mut run = experiment.reweight(out.path().join("run")).unwrap();
        run.next().unwrap().unwrap();
        spoil(&path);
        let error = run.find_map(Result::err).expect("an error").to_string();
        assert!(error.contains(message), "{error}");
        assert!(run.next().is_none());
        fs::write(&path, &bytes).unwrap();
        set_modified(&path, time);
        drop(run);
        let resumed = experiment.resume(out.path().join("run")).unwrap();
        assert!(resumed.map(|step| step.unwrap()).count() >= 4); // some draws were read ahead, some of 9 steps are left
    }
}

/// What needs all samples at once says so.
#[test]
fn methods_that_need_all_samples_say_so() {
    let data = data();
    let out = tempdir().unwrap();
    let experiment = Experiment::open(experiment(data.path(), None, Some(true))).unwrap();
    let error = experiment
        .baseline(&"doremi".parse().unwrap(), out.path().join("run"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train_a.jsonl: is streamed, but all of its samples are needed at once"),
        "{error}"
    );
    let uniform = experiment.baseline(&"uniform".parse().unwrap(), out.path().join("uniform"));
    assert_eq!(uniform.unwrap().weights.sources.len(), 3);
}

/// Records so short that they give one sample whatever their tokens are not tokenized to know it: the longest sample is then as
/// long as the bytes of its record.
#[test]
fn short_records_are_not_tokenized_before_they_are_drawn() {
    let folder = tempdir().unwrap();
    let path = folder.path().join("a.jsonl");
    let text = "word and ".repeat(10);
    fs::write(&path, json!({"text": text}).to_string()).unwrap();
    let [llama, gpt2, qwen] = tokenizers();
    let longest = |tokenizer| {
        let held = Source::read("a", &path, tokenizer, 300).unwrap();
        let streamed = Source::stream("a", &path, tokenizer, 300, None).unwrap();
        (held.samples.longest(), streamed.samples.longest())
    };
    let (held, streamed) = longest(llama);
    assert_eq!(streamed, held);
    let (held, streamed) = longest(gpt2);
    assert!(held < text.len());
    assert_eq!(streamed, text.len() + 1);
    assert_eq!(longest(qwen).1, 3 * text.len() + 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    /// Any mixture of texts and instructions, at any length.
    #[test]
    fn any_records_give_the_same_samples(
        words in prop::collection::vec((any::<bool>(), word(), 1..12usize), 1..16),
        length in prop_oneof![2..40usize, 100..700usize],
    ) {
        let record = |(is_text, word, times): &(bool, String, usize)| match is_text {
            true => json!({"text": word.repeat(*times)}),
            false => json!({"instruction": word.repeat(*times), "output": word}),
        };
        let lines: Vec<String> = words.iter().map(|words| record(words).to_string()).collect();
        let folder = tempdir().unwrap();
        let path = folder.path().join("a.jsonl");
        fs::write(&path, lines.join("\n")).unwrap();
        let made = compare(&path, length, Some(folder.path()));
        let read = compare_with(&tokenizers()[1], &path, length, Some(folder.path()));
        prop_assert!(read.is_none() || made.is_some());
    }
}

/// Also what tokenizers take for special, and characters that are composed.
fn word() -> impl Strategy<Value = String> {
    prop_oneof![
        "[a-zé語 .<|>]{0,60}",
        Just("<|endoftext|>".to_owned()),
        Just("e\u{301}\u{344}".to_owned()),
        Just("\u{301}".to_owned()),
        Just("</s>".to_owned()),
        Just(" ".to_owned()),
    ]
}
