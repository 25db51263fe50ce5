//! Methods beside each other: that all get the same, that the numbers of the tables are those of the files, and that an
//! interrupted comparison ends as one that was not.

use std::fs;
use std::path::Path;

use scalebio::baselines::{Baseline, InfluenceConfig, ReferenceConfig};
use scalebio::train::{
    Compare, CompareConfig, Comparison, Cost, Method, MethodRun, OwnMethod, ReweightConfig,
};
use tempfile::TempDir;

use crate::evaluate::stories;
use crate::examples::{example, printed};
use crate::resample::{folder, lines};

/// Two sources, of which `a` is like the validation and the test set.
fn data() -> TempDir {
    let files = [
        ("train_a.jsonl", lines("a", 20)),
        ("train_b.jsonl", lines("of another kind", 30)),
    ];
    let held_out = [
        ("val.jsonl", lines("an a", 6)),
        ("test.jsonl", lines("that a", 6)),
    ];
    folder(&[files, held_out].concat(), &[])
}

fn config(data: &Path) -> CompareConfig {
    let mut experiment = ReweightConfig::new(data);
    experiment.model = Some(stories());
    (experiment.steps, experiment.batch, experiment.max_length) = (4, 4, 16);
    let mut config = CompareConfig::new(experiment);
    config.seeds = vec![0, 1];
    for method in &mut config.methods {
        if let Method::Baseline(baseline) = method {
            match baseline {
                Baseline::Influence(less) => {
                    *less = InfluenceConfig {
                        share: 0.3,
                        checkpoints: 1,
                        dimension: 16,
                        ..InfluenceConfig::default()
                    };
                }
                Baseline::Reference(rho) => {
                    *rho = ReferenceConfig {
                        share: 0.5,
                        ..ReferenceConfig::default()
                    }
                }
                _ => {}
            }
        }
    }
    config
}

fn all(compare: &Compare) -> Comparison {
    for job in compare.remaining() {
        compare.run(&job).unwrap();
    }
    compare.finish().unwrap()
}

/// Time and memory are never the same again.
fn without_cost(comparison: &Comparison) -> Comparison {
    let nothing = Cost {
        seconds: 0.0,
        cpu_seconds: None,
        peak_memory: None,
        ..comparison.runs[0].cost
    };
    let mut comparison = comparison.clone();
    for run in &mut comparison.runs {
        run.cost = Cost {
            training_tokens: run.cost.training_tokens,
            scored_tokens: run.cost.scored_tokens,
            ..nothing
        };
    }
    for method in &mut comparison.methods {
        method.cost = Cost {
            training_tokens: method.cost.training_tokens,
            scored_tokens: method.cost.scored_tokens,
            ..nothing
        };
    }
    comparison
}

/// Every method has a run with every seed, the same number of training tokens to within a batch, weights that add up to one,
/// and a summary that is the mean over its runs; run.json and comparison.json hold them.
#[test]
fn every_method_gets_the_same_and_the_summary_is_that_of_the_files() {
    let data = data();
    let config = config(data.path());
    let compare = Compare::open(config.clone(), data.path().join("out")).unwrap();
    assert_eq!(compare.remaining().len(), 8 * 2);
    assert!(
        compare
            .finish()
            .unwrap_err()
            .to_string()
            .contains("16 runs are not finished")
    );
    let comparison = all(&compare);

    let batch = (config.experiment.batch * config.experiment.max_length) as f64;
    let tokens: Vec<f64> = comparison
        .runs
        .iter()
        .map(|run| run.tokens as f64)
        .collect();
    let mean = tokens.iter().sum::<f64>() / tokens.len() as f64;
    assert!(
        tokens.iter().all(|tokens| (tokens - mean).abs() <= batch),
        "{tokens:?}"
    );

    for (job, run) in compare.jobs().iter().zip(&comparison.runs) {
        assert_eq!((&run.method, run.seed), (&job.method, job.seed));
        let path = compare.job_folder(job).join("run.json");
        let stored: MethodRun = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        assert_eq!(stored, *run);
        let sum: f64 = run.weights.iter().map(|source| source.weight).sum();
        let validation = run.method == Method::Own(OwnMethod::Validation);
        assert!(
            if validation {
                run.weights.is_empty()
            } else {
                (sum - 1.0).abs() < 1e-9
            },
            "{run:?}"
        );
        let learns = !["uniform", "proportional", "validation"].contains(&run.method.name());
        assert_eq!(run.cost.training_tokens > 0, learns, "{}", run.method);
        assert!((run.test.perplexity.ln() - run.test.token_loss).abs() < 1e-9);
    }
    // The text, since a float that is read may differ from the one that was written in its last bit.
    let text = fs::read_to_string(data.path().join("out/comparison.json")).unwrap();
    assert_eq!(
        text.trim_end(),
        serde_json::to_string_pretty(&comparison).unwrap()
    );
    let read: Comparison = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (read.config, read.methods.len()),
        (comparison.config.clone(), 8)
    );

    let losses = |name: &str| -> Vec<f64> {
        let runs = comparison
            .runs
            .iter()
            .filter(|run| run.method.name() == name);
        runs.map(|run| run.test.sample_loss).collect()
    };
    for method in &comparison.methods {
        let (own, reference) = (losses(method.method.name()), losses("scalebio"));
        assert!((method.loss.mean - (own[0] + own[1]) / 2.0).abs() < 1e-12);
        assert!((method.loss.deviation - (own[0] - own[1]).abs() / 2f64.sqrt()).abs() < 1e-12);
        let difference = (own[0] - reference[0] + own[1] - reference[1]) / 2.0;
        match &method.against_scalebio {
            Some(against) => assert!((against.mean - difference).abs() < 1e-12),
            None => assert_eq!(method.method.name(), "scalebio"),
        }
    }
}

/// What is finished is not run again, what was interrupted is run anew, and the end is the same but for time and memory.
#[test]
fn an_interrupted_comparison_goes_on_and_ends_as_one_that_was_not() {
    let data = data();
    let mut config = config(data.path());
    config
        .methods
        .retain(|method| ["scalebio", "uniform", "less"].contains(&method.name()));
    let open =
        |name: &str, config: &CompareConfig| Compare::open(config.clone(), data.path().join(name));
    let whole = all(&open("whole", &config).unwrap());

    // Fewer seeds first, then an interruption in a run.
    let mut fewer = config.clone();
    fewer.seeds = vec![0];
    let part = open("part", &fewer).unwrap();
    all(&part);
    let jobs = part.jobs();
    let (kept, lost) = (
        part.job_folder(&jobs[0]).join("run.json"),
        part.job_folder(&jobs[2]),
    );
    let written = fs::metadata(&kept).unwrap().modified().unwrap();
    fs::remove_file(lost.join("run.json")).unwrap();
    fs::write(lost.join("learn/metrics.jsonl"), "half a li").unwrap();

    let compare = open("part", &config).unwrap();
    assert_eq!(compare.remaining().len(), 4);
    assert_eq!(compare.summary().unwrap().runs.len(), 2);
    let resumed = all(&compare);
    assert_eq!(fs::metadata(&kept).unwrap().modified().unwrap(), written);
    assert_eq!(without_cost(&resumed), without_cost(&whole));
    assert_eq!(
        Compare::resume(data.path().join("part"))
            .unwrap()
            .summary()
            .unwrap(),
        resumed
    );

    config.experiment.steps = 5;
    let error = open("part", &config).unwrap_err().to_string();
    assert!(
        error.contains("other settings (`steps` is 4 there and 5 here)"),
        "{error}"
    );
}

/// Settings that cannot work are refused before anything is written.
#[test]
fn settings_that_cannot_work_are_refused() {
    let data = data();
    let refused = |change: fn(&mut CompareConfig), message: &str| {
        let mut config = config(data.path());
        change(&mut config);
        let error = Compare::open(config, data.path().join("out"))
            .unwrap_err()
            .to_string();
        assert!(error.contains(message), "{error}");
        assert!(!data.path().join("out").exists());
    };
    refused(
        |c| c.seeds.clear(),
        "seeds is none, but must be at least one",
    );
    refused(|c| c.seeds.push(1), "seeds is `1` twice");
    refused(
        |c| c.methods.push(c.methods[0].clone()),
        "methods is `scalebio` twice",
    );
    refused(
        |c| c.tokens = Some(0),
        "tokens is 0, but must be at least 1",
    );
    refused(|c| c.experiment.steps = 0, "steps is 0");
    let error = "doremy".parse::<Method>().unwrap_err().to_string();
    assert!(error.contains("must be one of scalebio, uniform, proportional, less, rho-loss, alignment, doremi, validation"), "{error}");
    fs::remove_file(data.path().join("test.jsonl")).unwrap();
    refused(|_| (), "no test set, on which the results are compared");
}

/// The program runs each method in a process of its own, and prints, in markdown and in the page, the numbers of
/// comparison.json.
#[test]
fn the_program_prints_the_numbers_of_the_files() {
    let data = data();
    let (folder, out) = (data.path().to_str().unwrap(), data.path().join("out"));
    let model = stories();
    let arguments = [
        "--data",
        folder,
        "--model",
        model.to_str().unwrap(),
        "--out",
        out.to_str().unwrap(),
        "--steps",
        "2",
        "--batch",
        "4",
        "--max-length",
        "16",
        "--methods",
        "scalebio,uniform,validation",
        "--seeds",
        "2",
        "--tokens",
        "100",
    ];
    let text = printed(&example("compare", &arguments));
    let stored = fs::read(out.join("comparison.json")).unwrap();
    let comparison: Comparison = serde_json::from_slice(&stored).unwrap();
    assert_eq!(comparison.config.tokens, Some(100));
    let page = fs::read_to_string(out.join("report.html")).unwrap();
    for method in &comparison.methods {
        let loss = format!("{:.4} ± {:.4}", method.loss.mean, method.loss.deviation);
        assert!(
            text.contains(&format!("| {} | {loss} |", method.method)),
            "{text}"
        );
        assert!(page.contains(&loss), "{loss}");
        assert!(method.cost.peak_memory.is_some() || !cfg!(target_os = "linux"));
        let against = method.against_scalebio.map(|against| against.mean);
        let better = format!("{} is better than ScaleBiO", method.method);
        let is_better = against.is_some_and(|mean| mean < 0.0);
        assert_eq!(text.contains(&better), is_better, "{text}");
        assert_eq!(page.contains(&better), is_better);
        for source in &method.weights {
            let weight = format!("{:.3} ± {:.3}", source.weight.mean, source.weight.deviation);
            assert!(text.contains(&weight) && page.contains(&weight), "{weight}");
        }
    }
    let again = printed(&example("compare", &arguments));
    assert!(again.starts_with("6 of 6 runs are finished"), "{again}");
    let tables = |text: &str| text[text.find("| method").unwrap()..].to_owned();
    assert_eq!(tables(&again), tables(&text));
}
