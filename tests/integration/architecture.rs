//! The direction of dependencies between modules (docs/architecture.md), and the size of files.

use std::fs;
use std::path::{Path, PathBuf};

fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files.extend(rust_files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    files
}

/// The modules of this crate that a file uses: what follows `crate::`, alone or in braces.
fn used(code: &str) -> Vec<String> {
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code: String = lines.collect::<Vec<_>>().join("\n");
    let mut used = Vec::new();
    for after in code.split("crate::").skip(1) {
        let names = match after.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap().split(',').collect(),
            None => vec![after],
        };
        for name in names {
            let name = name.trim();
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_');
            used.push(name[..end.unwrap_or(name.len())].to_owned());
        }
    }
    used
}

#[test]
fn dependencies_point_down_only() {
    let errors = ["error", "Error", "Result"];
    let problem = [
        "Bilevel",
        "Gradients",
        "LowerObjective",
        "Slot",
        "UpperObjective",
    ];
    let allowed: [(&str, Vec<&str>); 19] = [
        ("bin", vec!["program"]), // itself; of the library, the public interface only
        ("error.rs", vec![]),
        ("device", errors.to_vec()),
        ("files.rs", errors.to_vec()),
        ("collective", errors.to_vec()),
        ("progress.rs", errors.to_vec()),
        ("offload.rs", vec![]),
        ("problem.rs", [&errors[..], &["progress"]].concat()),
        (
            "problems",
            [&errors[..], &problem, &["progress", "Minibatches"]].concat(),
        ),
        (
            "sampler",
            [&errors[..], &["progress", "LayerSampler", "Slot"]].concat(),
        ),
        (
            "solver",
            [
                &errors[..],
                &problem,
                &["collective", "files", "kernels", "offload", "sampler"],
                &["Moments", "Offload", "catch_lost_device"],
            ]
            .concat(),
        ),
        (
            "methods",
            [
                &errors[..],
                &problem,
                &[
                    "catch_lost_device",
                    "sampler",
                    "solver",
                    "Run",
                    "ScaleBio",
                    "Step",
                ],
            ]
            .concat(),
        ),
        (
            "baselines",
            [&errors[..], &["data", "models", "reweight", "solver"]].concat(),
        ),
        (
            "reweight/language.rs",
            [&errors[..], &["data", "models", "problem"]].concat(),
        ),
        (
            "reweight",
            [&errors[..], &problem, &["problem", "progress"]].concat(),
        ),
        ("data", [&errors[..], &["files", "data"]].concat()),
        ("kernels", vec!["kernels"]),
        (
            "models",
            [&errors[..], &["files", "kernels", "offload"]].concat(),
        ),
        ("train", vec!["*"]),
    ];
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    for file in rust_files(&src) {
        let name = file.strip_prefix(&src).unwrap();
        if name == Path::new("lib.rs") {
            continue;
        }
        let (_, allowed) = allowed
            .iter()
            .find(|(module, _)| name.starts_with(module))
            .unwrap_or_else(|| {
                panic!("{} is in no module of docs/architecture.md", name.display())
            });
        for used in used(&fs::read_to_string(&file).unwrap()) {
            assert!(
                allowed.contains(&"*") || allowed.contains(&used.as_str()),
                "{} uses crate::{used}, against the arrows of docs/architecture.md",
                name.display()
            );
        }
    }
}

#[test]
fn no_file_is_longer_than_500_lines() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for folder in ["src", "tests", "examples", "benches"].map(|f| root.join(f)) {
        for file in rust_files(&folder) {
            let lines = fs::read_to_string(&file).unwrap().lines().count();
            assert!(lines <= 500, "{} has {lines} lines", file.display());
        }
    }
}
