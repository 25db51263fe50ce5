//! The report on a run: that it says what the files say, needs nothing else to be read, and refuses what is damaged.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::examples::{example, printed};

/// The files of a run of `steps` steps on sources of these names.
struct Files {
    folder: TempDir,
    names: Vec<String>,
}

impl Files {
    fn new(names: &[&str], steps: usize, planned: usize) -> Self {
        let files = Self {
            folder: tempfile::tempdir().unwrap(),
            names: names.iter().map(|&name| name.to_owned()).collect(),
        };
        let config = json!({"data": "some \"data\" & <more>", "steps": planned, "lr_upper": 0.04, "model": null, "seed": 3});
        files.write("config.json", &config.to_string());
        let status = if steps < planned {
            "running"
        } else {
            "out_of_reach"
        };
        files.write_weights(steps, status);
        let lines: String = (0..steps)
            .map(|step| files.line(step).to_string() + "\n")
            .collect();
        files.write("metrics.jsonl", &lines);
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// Weights 1, 2, 3, ... as shares of their sum.
    fn weight(&self, index: usize) -> f64 {
        let n = self.names.len() as f64;
        (index + 1) as f64 / (n * (n + 1.0) / 2.0)
    }

    fn write_weights(&self, step: usize, status: &str) {
        let source = |(i, name): (usize, &String)| {
            let weight = self.weight(i);
            json!({"name": name, "weight": weight, "logit": weight.ln(), "samples": 100 + i})
        };
        let sources: Vec<Value> = self.names.iter().enumerate().map(source).collect();
        let weights = json!({"schema_version": 1, "step": step, "seed": 3, "reach": 0.25, "status": status, "sources": sources});
        self.write("weights.json", &weights.to_string());
    }

    fn line(&self, step: usize) -> Value {
        let x = step as f64;
        let by_source = |of: &dyn Fn(usize) -> f64| -> Value {
            let names = self.names.iter().enumerate();
            Value::Object(
                names
                    .map(|(i, name)| (name.clone(), of(i).into()))
                    .collect(),
            )
        };
        json!({
            "step": step, "l1_w": 6.0 - 0.1 * x, "l2_w": 5.5, "l2_u": 5.4, "gap": 0.1,
            "weights": by_source(&|i| self.weight(i)),
            "source_losses_w": by_source(&|i| 5.0 + i as f64), "source_losses_u": by_source(&|i| 4.0 + i as f64),
            "hypergradient_norm": 0.0, "gradient_norm_w": 3.0, "gradient_norm_u": 2.0 + x,
            "alpha": 10.0, "lr_upper": 0.04, "lr_lower": 0.001, "lr_auxiliary": 0.001, "seconds": 0.5, "tokens": 1234
        })
    }

    fn metrics(&self) -> String {
        fs::read_to_string(self.path("metrics.jsonl")).unwrap()
    }

    fn report(&self) -> String {
        let folder = self.folder.path().to_str().unwrap();
        printed(&example("report", &[folder]));
        fs::read_to_string(self.path("report.html")).unwrap()
    }

    fn refused(&self) -> String {
        let output = example("report", &[self.folder.path().to_str().unwrap()]);
        assert!(!output.status.success());
        assert!(!self.path("report.html").exists());
        String::from_utf8(output.stderr).unwrap()
    }
}

/// Panics unless every element is closed in its turn, every attribute quoted and every `&` the start of an entity.
fn assert_well_formed(text: &str) {
    let mut open: Vec<&str> = Vec::new();
    let mut rest = text;
    while let Some(start) = rest.find('<') {
        assert_entities(&rest[..start]);
        let end = start + rest[start..].find('>').expect("a tag without an end");
        let tag = &rest[start + 1..end];
        rest = &rest[end + 1..];
        if let Some(name) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "closed in turn");
            continue;
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "quotes of <{tag}>");
        assert_entities(tag);
        let name = tag.split(|c: char| c.is_whitespace()).next().unwrap();
        if !tag.ends_with('/') && !["!doctype", "meta", "link"].contains(&name) {
            open.push(name);
        }
    }
    assert_entities(rest);
    assert!(open.is_empty(), "left open: {open:?}");
}

fn assert_entities(text: &str) {
    for part in text.split('&').skip(1) {
        let known = ["amp;", "lt;", "gt;", "quot;", "#x27;", "#x2f;"];
        assert!(known.iter().any(|name| part.starts_with(name)), "&{part}");
    }
}

/// Nothing in the page makes a browser ask anyone for anything.
fn assert_self_contained(page: &str) {
    let text = page.replace("http://www.w3.org/2000/svg", "");
    for outside in [
        "http:", "https:", "src=", "@import", "url(", "<script", "<iframe", "<object",
    ] {
        assert!(!text.contains(outside), "{outside}");
    }
    assert_eq!(
        text.matches("<link").count(),
        text.matches("href=\"data:,\"").count()
    );
}

/// Names of any letters are escaped in the page and in every chart, also of a single step; nothing is NaN, and nothing is
/// loaded from elsewhere.
#[test]
fn the_page_is_whole_and_shows_every_source_as_it_is_called() {
    for (names, steps) in [
        (&["<b>&\"", "plain'name"][..], 1),
        (&["a", "b", "c]]>"], 30),
    ] {
        let files = Files::new(names, steps, steps);
        let page = files.report();
        assert_well_formed(&page);
        assert_self_contained(&page);
        let escaped = |name: &str| {
            let text = name
                .replace('&', "&amp;")
                .replace('<', "&lt;")
                .replace('>', "&gt;");
            text.replace('"', "&quot;").replace('\'', "&#x27;")
        };
        for name in names {
            let row = format!("<th scope=\"row\">{}</th>", escaped(name));
            assert!(page.contains(&row), "{name}");
        }
        let mut charts = 0;
        for entry in fs::read_dir(files.path("plots")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().unwrap() == "svg" {
                charts += 1;
                let chart = fs::read_to_string(&path).unwrap();
                assert_well_formed(&chart);
                assert!(!chart.contains("NaN") && !chart.contains("inf"), "{path:?}");
                assert!(page.contains(chart.trim_end()), "{path:?} is in the page");
                let pixels = fs::read(path.with_extension("png")).unwrap();
                assert_eq!(&pixels[..8], b"\x89PNG\r\n\x1a\n");
                let size =
                    [16, 20].map(|at| u32::from_be_bytes(pixels[at..at + 4].try_into().unwrap()));
                assert_eq!(size, [1440, 760], "{path:?}");
            }
        }
        assert_eq!(charts, 9);
        let weights = fs::read_to_string(files.path("plots/weights.svg")).unwrap();
        for name in names {
            assert!(
                weights.contains(&escaped(name).replace("&#x27;", "'")),
                "{name}"
            );
        }
    }
}

/// The table is that of weights.json, the largest weight first, with the mean loss of the last tenth of the steps; settings and
/// what the run came to are there.
#[test]
fn the_page_says_what_the_files_say() {
    let files = Files::new(&["a", "b", "c"], 20, 20);
    let page = files.report();
    let table =
        &page[page.find("<h2>Weights</h2>").unwrap()..page.find("<h2>Charts</h2>").unwrap()];
    let cells = |name: &str| -> Vec<String> {
        let row = &table[table
            .find(&format!("<th scope=\"row\">{name}</th>"))
            .unwrap()..];
        let row = &row[..row.find("</tr>").unwrap()];
        let cells = row.split("<td").skip(1);
        cells
            .map(|cell| cell.split(['>', '<']).nth(1).unwrap().to_owned())
            .collect()
    };
    assert_eq!(cells("c"), ["102", "0.5000", "1.50", "-0.693", "7.000"]);
    assert_eq!(cells("a"), ["100", "0.1667", "0.50", "-1.792", "5.000"]);
    assert!(table.find(">c<").unwrap() < table.find(">a<").unwrap());
    for said in [
        "20 of 20",
        "6.000 → 4.100",
        "24,680",
        "still moving",
        "reach 0.25",
        "some &quot;data&quot; &amp; &lt;more&gt;",
    ] {
        assert!(page.contains(said), "{said}");
    }
    files.write_weights(20, "converged");
    assert!(files.report().contains("The weights have settled."));
}

/// A run that is going on, or was killed in the middle of a line, or whose losses were not finite, has a report that says so.
#[test]
fn a_run_that_is_not_over_has_a_report_that_says_so() {
    let files = Files::new(&["a", "b"], 4, 10);
    let page = files.report();
    assert!(page.contains("Running or interrupted: 4 of 10 steps"));
    assert!(!page.contains("not written to its end"));

    let whole = files.metrics();
    files.write("metrics.jsonl", &whole[..whole.len() - 40]);
    assert!(files.report().contains("not written to its end"));
    let mut broken = files.line(4);
    broken["l1_w"] = Value::Null;
    broken["gap"] = Value::Null;
    files.write("metrics.jsonl", &format!("{whole}{broken}\n"));
    let page = files.report();
    assert!(page.contains("1 steps have a loss that is not finite") && !page.contains("NaN,"));
    // Before the first step there is nothing but weights.
    files.write("metrics.jsonl", "");
    files.write_weights(0, "running");
    assert_well_formed(&files.report());
}

/// What is damaged is named with its file and line, and nothing is written.
#[test]
fn damaged_metrics_are_named_with_their_line() {
    let files = Files::new(&["a", "b"], 4, 4);
    let lines: Vec<String> = files.metrics().lines().map(str::to_owned).collect();
    let damaged = |line: usize, text: &str| {
        let mut lines = lines.clone();
        lines[line - 1] = text.to_owned();
        files.write("metrics.jsonl", &(lines.join("\n") + "\n"));
        files.refused()
    };
    let cases = [
        (
            2,
            "{\"step\": 1, \"l1_w\"".to_owned(),
            "metrics.jsonl:2: EOF",
        ),
        (
            3,
            lines[2].replace("\"l2_u\"", "\"l2\""),
            "metrics.jsonl:3: missing field `l2_u`",
        ),
        (
            3,
            lines[2].replace("\"step\":2", "\"step\":1"),
            "metrics.jsonl:3: step 1 follows step 1",
        ),
        (
            4,
            lines[3].replace("\"step\":3", "\"step\":7"),
            "metrics.jsonl:4: step 7 follows step 2",
        ),
        (
            1,
            lines[0].replace("\"b\":", "\"z\":"),
            "metrics.jsonl:1: the sources of `weights` are a, z, but those of weights.json are a, b",
        ),
        (4, "[]".to_owned(), "metrics.jsonl:4: "),
    ];
    for (line, text, message) in cases {
        let error = damaged(line, &text);
        assert!(error.contains(message), "{error}");
    }
    fs::remove_file(files.path("config.json")).unwrap();
    assert!(
        files
            .refused()
            .contains("not the folder of a run, since it has no config.json")
    );
}

/// With a hundred sources those of the largest weights have colors and names, the others are one grey.
#[test]
fn a_hundred_sources_stay_readable() {
    let names: Vec<String> = (0..100).map(|i| format!("source-{i:03}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let files = Files::new(&names, 300, 300);
    let page = files.report();
    assert!(page.contains("the other 93 in grey"));
    let chart = fs::read_to_string(files.path("plots/weights.svg")).unwrap();
    let named = |i: usize| chart.contains(&format!(">source-{i:03}</text>"));
    assert!((93..100).all(named) && !(0..93).any(named));
    assert_eq!(chart.matches("class=\"muted\"").count(), 93);
    assert!(page.len() < 2_000_000, "{}", page.len());
}

/// A fine-tuning has a report too, and `--out` is where the page goes.
#[test]
fn a_training_has_a_report_where_it_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(
        folder.path().join("config.json"),
        r#"{"data": "mix.jsonl", "steps": 3}"#,
    )
    .unwrap();
    let line = |step: usize, validation: &str| {
        format!(
            "{{\"step\":{step},\"loss\":{},{validation}\"gradient_norm\":2.0,\"learning_rate\":0.001,\"seconds\":0.1,\"tokens\":10}}\n",
            5 - step
        )
    };
    let lines = [
        line(0, ""),
        line(1, "\"validation_loss\":4.5,"),
        line(2, "\"validation_loss\":4.25,"),
    ];
    fs::write(folder.path().join("metrics.jsonl"), lines.concat()).unwrap();
    let out = folder.path().join("page.html");
    let arguments = [
        folder.path().to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
    ];
    printed(&example("report", &arguments));
    let page = fs::read_to_string(out).unwrap();
    assert_well_formed(&page);
    for said in [
        "The training is complete.",
        "5.000 → 3.000",
        "4.500 → 4.250",
    ] {
        assert!(page.contains(said), "{said}");
    }
}

/// The page opens from disk in a browser without an error or a request, and both would be seen. Needs chromium (apt-get install
/// chromium).
#[test]
fn a_browser_opens_the_page_without_errors_and_asks_for_nothing() {
    let Some(browser) = chromium() else {
        println!("skipped: no chromium here");
        return;
    };
    let files = Files::new(&["a", "<b>", "c"], 10, 10);
    let page = files.report();
    assert_eq!(browse(browser, &files, "report.html"), [0, 0]);
    let planted = "<main><img src=\"http://127.0.0.1:9/a.png\"><script>console.error(1)</script>";
    files.write("planted.html", &page.replace("<main>", planted));
    let [errors, requests] = browse(browser, &files, "planted.html");
    assert!(errors > 0 && requests > 0, "{errors} {requests}");
}

fn chromium() -> Option<&'static str> {
    let runs = |name: &&str| {
        let output = Command::new(name).arg("--version").output();
        output.is_ok_and(|output| output.status.success())
    };
    let names = ["chromium", "chromium-browser", "google-chrome"];
    names.into_iter().find(runs)
}

/// The numbers of lines that a page writes to the console, and of its requests.
fn browse(browser: &str, files: &Files, page: &str) -> [usize; 2] {
    let (log, picture) = (files.path("net.json"), files.path("page.png"));
    let quiet = [
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
    ];
    let output = Command::new(browser)
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
        ])
        .args(quiet)
        .arg("--host-resolver-rules=MAP * ~NOTFOUND") // what the browser itself asks for leads nowhere
        .arg(format!(
            "--user-data-dir={}",
            files.path("browser").display()
        ))
        .arg(format!("--log-net-log={}", log.display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg(format!("file://{}", files.path(page).display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(picture.metadata().unwrap().len() > 10_000);
    let said = String::from_utf8_lossy(&output.stderr);
    let console = said.lines().filter(|line| line.contains("CONSOLE"));
    // The site of a page from disk has no origin, which the log calls null; the browser's own requests are `not an origin`.
    let of_the_page = |event: &&Value| {
        let text = |name: &str| event["params"][name].as_str().unwrap_or_default();
        text("url").starts_with("http") && text("initiator") == "null"
    };
    let log: Value = serde_json::from_slice(&fs::read(log).unwrap()).unwrap();
    let events = log["events"].as_array().unwrap();
    [console.count(), events.iter().filter(of_the_page).count()]
}
