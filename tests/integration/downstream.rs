//! A crate of somebody else can depend on the solver alone.

use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder with this build's artifacts: `<target>/release/deps/integration-...` is running.
fn target_folder() -> PathBuf {
    let binary = std::env::current_exe().unwrap();
    binary.ancestors().nth(3).unwrap().to_owned()
}

#[test]
fn a_crate_outside_builds_the_pure_solver_and_solves_a_quadratic() {
    if cfg!(debug_assertions) || cfg!(feature = "wgpu") || cfg!(feature = "cuda") {
        return; // another profile or feature set of Burn: it would be built once more for this
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let folder = root.join("tests/downstream");
    // The versions of this build, so that nothing is fetched and Burn is not built again.
    let lock = folder.join("Cargo.lock");
    std::fs::copy(root.join("Cargo.lock"), &lock).unwrap();
    let cargo = |arguments: &[&str]| {
        let output = Command::new(env!("CARGO"))
            .args(arguments)
            .arg("--manifest-path")
            .arg(folder.join("Cargo.toml"))
            .env("CARGO_TARGET_DIR", target_folder())
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{errors}");
        (String::from_utf8(output.stdout).unwrap(), errors)
    };
    let (printed, built) = cargo(&["run", "--release", "--offline"]);
    assert_eq!(printed, "3.0000\n3.0000\n");
    assert!(
        !built.contains("Compiling burn"),
        "Burn was built again:\n{built}"
    );

    let (tree, _) = cargo(&["tree", "--offline", "--edges", "normal", "--prefix", "none"]);
    assert!(tree.contains("scalebio v"), "{tree}");
    for unwanted in ["tokenizers v", "safetensors v"] {
        assert!(!tree.contains(unwanted), "{unwanted} in {tree}");
    }
}
