//! The command `reweight` as several processes: compared, killed, stopped, and started with different flags.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use scalebio::LayerSampler;
use scalebio::Lisa;
use scalebio::burn::tensor::Device;
use scalebio::models::CausalLm;
use scalebio::train::WeightsReport;
use tempfile::{TempDir, tempdir};

use crate::evaluate::stories;
use crate::lisa_gpt2::trainable;
use crate::resume_training::{data, metrics};
use crate::zoo::{largest_difference, say};

/// What all ranks of a job must have ended in, whatever happens to one.
const PROMISE: Duration = Duration::from_secs(30);

/// Whether jobs can be started here. Where the environment says that they must be, it is a failure if not.
fn mpi_is_here() -> bool {
    let version = Command::new("mpirun").arg("--version").output();
    let open_mpi =
        version.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).contains("Open MPI"));
    let here = cfg!(feature = "mpi") && open_mpi && cfg!(target_os = "linux");
    let required = std::env::var_os("SCALEBIO_MPI").is_some_and(|value| value == "1");
    assert!(
        here || !required,
        "SCALEBIO_MPI=1, but no Open MPI or no feature `mpi`"
    );
    if !here {
        say(
            "skipped: jobs of several processes; install openmpi-bin, libopenmpi-dev and libclang-dev, and build with --features mpi",
        );
    }
    here
}

/// A job of so many ranks with these flags, and so many more with those.
fn job(parts: &[(usize, Vec<&str>)]) -> Command {
    let mut command = Command::new("mpirun");
    command.args(["--allow-run-as-root", "--oversubscribe"]);
    for (index, (ranks, flags)) in parts.iter().enumerate() {
        if index > 0 {
            command.arg(":");
        }
        let program = env!("CARGO_BIN_EXE_scalebio");
        command
            .args(["-n", &ranks.to_string(), program, "reweight"])
            .args(flags);
    }
    // Ranks share the cores.
    command
        .env("RAYON_NUM_THREADS", "1")
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    command
}

/// Data, and a folder for runs.
struct Place {
    data: TempDir,
    folder: TempDir,
    model: PathBuf,
}

impl Place {
    fn new() -> Self {
        let (data, folder) = (data(), tempdir().unwrap());
        let model = stories();
        Self {
            data,
            folder,
            model,
        }
    }

    fn out(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// A run of short steps under LISA.
    fn flags<'a>(&'a self, steps: &'a str, out: &'a Path, more: &[&'a str]) -> Vec<&'a str> {
        let short = [
            "--steps",
            steps,
            "--batch",
            "6",
            "--max-length",
            "12",
            "--micro-batch",
            "2",
        ];
        let layers = [
            "--lisa-blocks",
            "1",
            "--lisa-period",
            "3",
            "--lr-lower",
            "1e-3",
        ];
        let places = [
            "--data",
            text(self.data.path()),
            "--model",
            text(&self.model),
            "--out",
            text(out),
        ];
        [
            &short[..],
            &layers,
            &places,
            &["--no-compare", "--force"],
            more,
        ]
        .concat()
    }
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn finished(mut command: Command) -> Output {
    let output = command.output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    output
}

/// What a job that fails says, each line of which that starts so is an error of a rank.
fn errors(mut command: Command) -> Vec<String> {
    let started = Instant::now();
    let output = command.output().unwrap();
    assert!(!output.status.success());
    assert!(started.elapsed() < 2 * PROMISE);
    let errors = String::from_utf8(output.stderr).unwrap();
    let lines = errors.lines().filter(|line| line.starts_with("error: "));
    lines.map(str::to_owned).collect()
}

fn weights(out: &Path) -> Vec<f64> {
    let report = WeightsReport::read(out.join("weights.json")).unwrap();
    report.sources.iter().map(|source| source.weight).collect()
}

/// One, two and four processes learn the same weights; a job of one is the program without mpirun, and two jobs of two are each
/// other, bit for bit. Only rank 0 prints. Every line of the log says what each rank handed over: what trains, four bytes a
/// number, of both models, and little more.
#[test]
fn jobs_of_any_size_learn_the_same_weights() {
    if !mpi_is_here() {
        return;
    }
    let place = Place::new();
    let run = |name: &str, command: &dyn Fn(Vec<&str>) -> Command| {
        let out = place.out(name);
        let output = finished(command(place.flags("50", &out, &["--save-model"])));
        let printed = String::from_utf8(output.stdout).unwrap();
        assert_eq!(printed.matches("after 50 steps").count(), 1, "{printed}");
        let read = |name: &str| fs::read(out.join(name)).unwrap();
        let bits = (
            read("weights.json"),
            metrics(&out),
            read("model/model.safetensors"),
        );
        (weights(&out), bits)
    };
    let alone = run("alone", &|flags| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scalebio"));
        command.arg("reweight").args(flags);
        command.env("RAYON_NUM_THREADS", "1");
        command
    });
    let of = |name: &str, ranks| run(name, &|flags| job(&[(ranks, flags)]));
    assert!(of("one", 1).1 == alone.1);
    let two = of("two", 2);
    assert!(of("again", 2).1 == two.1);
    let four = of("four", 4);
    for (weights, _) in [&two, &four] {
        let difference = largest_difference(weights, &alone.0);
        assert!(difference < 1e-4, "{difference:e}");
    }

    let model = CausalLm::from_pretrained(stories(), &Device::flex()).unwrap();
    let lisa = Lisa::over(&model, &model.blocks_path()).unwrap();
    let active = lisa.active(1).sample(0).unwrap();
    let gradients = 4 * (trainable(&model, &active.lower) + trainable(&model, &active.auxiliary));
    for line in two.1.1.iter().chain(&four.1.1) {
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        let others = line["collective_bytes"].as_u64().unwrap() - gradients as u64;
        assert!(others < 600, "{others} bytes beside those of the gradients");
    }
}

/// The processes of a job, by rank.
fn processes(job: &Child) -> Vec<u32> {
    let mut ranks = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(id) = entry.file_name().to_string_lossy().parse::<u32>() else {
            continue;
        };
        // The parent is the second field after the name, which stands in parentheses.
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let after = stat.rsplit(')').next().unwrap_or_default();
        if after.split_whitespace().nth(1) != Some(&*job.id().to_string()) {
            continue;
        }
        let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
        let rank = environment.split(|byte| *byte == 0).find_map(|variable| {
            let value = variable.strip_prefix(b"OMPI_COMM_WORLD_RANK=")?;
            String::from_utf8_lossy(value).parse::<usize>().ok()
        });
        ranks.extend(rank.map(|rank| (rank, id)));
    }
    ranks.sort_unstable();
    ranks.into_iter().map(|(_, id)| id).collect()
}

/// Whether a process is there that is not a zombie: one whose parent has ended may stay so.
fn is_running(process: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).unwrap_or_default();
    let after = stat.rsplit(')').next().unwrap_or_default();
    !matches!(after.split_whitespace().next(), None | Some("Z" | "X"))
}

fn signal(name: &str, process: u32) {
    let status = Command::new("kill")
        .args([name, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

/// Starts a job of three, waits for its first checkpoint, sends a signal to a rank, and waits for the end of all. Returns what
/// was printed, and to standard error.
fn disturbed(
    place: &Place,
    out: &Path,
    steps: &str,
    more: &[&str],
    name: &str,
    rank: usize,
) -> (String, String) {
    let often = [&["--checkpoint-steps", "5"], more].concat();
    let mut command = job(&[(3, place.flags(steps, out, &often))]);
    let mut job = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let is_checkpoint = |entry: std::io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("step-"))
    };
    while !fs::read_dir(out.join("checkpoints")).is_ok_and(|mut entries| entries.any(is_checkpoint))
    {
        assert!(
            job.try_wait().unwrap().is_none(),
            "it ended before its first checkpoint"
        );
        sleep(Duration::from_millis(5));
    }
    let ranks = processes(&job);
    assert_eq!(ranks.len(), 3);
    let started = Instant::now();
    signal(name, ranks[rank]);
    while job.try_wait().unwrap().is_none() {
        if started.elapsed() > PROMISE {
            ranks.iter().for_each(|&rank| signal("-KILL", rank));
            panic!("{name} to rank {rank}: the job goes on after {PROMISE:?}");
        }
        sleep(Duration::from_millis(20));
    }
    while ranks.iter().any(|&rank| is_running(rank)) {
        assert!(started.elapsed() < PROMISE, "a process is left");
        sleep(Duration::from_millis(20));
    }
    let output = job.wait_with_output().unwrap();
    assert!(!output.status.success());
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (text(output.stdout), text(output.stderr))
}

/// Resumes with so many ranks and returns the weights at the end.
fn resumed(out: &Path, ranks: usize) -> Vec<f64> {
    let flags = vec!["--resume", text(out), "--no-compare", "--force"];
    let printed = finished(job(&[(ranks, flags)])).stdout;
    let printed = String::from_utf8(printed).unwrap();
    assert!(printed.contains("going on after"), "{printed}");
    weights(out)
}

/// A rank that is killed, also rank 0, ends all within the promised time, and its last checkpoint goes on with fewer ranks, to
/// the weights of a run that was left alone.
#[test]
fn a_job_with_a_killed_rank_ends_and_goes_on_with_fewer() {
    if !mpi_is_here() {
        return;
    }
    let place = Place::new();
    let whole = place.out("whole");
    // Gradient descent: Adam makes much of rounding over many steps, as between two sizes of the micro-batch too.
    let flags = ["--optimizer", "sgd"];
    finished(job(&[(1, place.flags("150", &whole, &flags))]));
    for (rank, fewer) in [(1, 2), (0, 1)] {
        let out = place.out(&format!("killed-{rank}"));
        let (_, errors) = disturbed(&place, &out, "150", &flags, "-KILL", rank);
        assert!(!errors.is_empty());
        let difference = largest_difference(&resumed(&out, fewer), &weights(&whole));
        assert!(difference < 1e-4, "{difference:e}");
    }
}

/// A rank that hangs ends all, after the time that a flag sets, with a message that says who waited and for how long.
#[test]
fn a_job_with_a_stopped_rank_ends_after_the_timeout() {
    if !mpi_is_here() {
        return;
    }
    let place = Place::new();
    for rank in [0, 2] {
        let out = place.out(&format!("stopped-{rank}"));
        let (_, errors) = disturbed(
            &place,
            &out,
            "20000",
            &["--rank-timeout", "3"],
            "-STOP",
            rank,
        );
        assert!(errors.contains("has waited 3 s for the others"), "{errors}");
    }
}

/// SIGINT to any rank ends all after the step they are in, with one checkpoint and the words to go on with.
#[test]
fn an_interrupt_of_one_rank_is_one_of_all() {
    if !mpi_is_here() {
        return;
    }
    let place = Place::new();
    let out = place.out("interrupted");
    let (printed, _) = disturbed(&place, &out, "20000", &[], "-INT", 2);
    assert_eq!(printed.matches("stopped after").count(), 1, "{printed}");
    assert_eq!(
        printed.matches(&format!("--resume {}", text(&out))).count(),
        1
    );
    let steps = metrics(&out).len();
    assert!(
        printed.contains(&format!("stopped after {steps} of 20000 steps")),
        "{printed}"
    );
    assert!(out.join(format!("checkpoints/step-{steps:08}")).exists());
}

/// Other flags or other data on one rank, and what goes wrong on one rank alone: one message, and the end of all.
#[test]
fn a_job_that_cannot_work_says_so_once() {
    if !mpi_is_here() {
        return;
    }
    let place = Place::new();
    let out = place.out("out");
    let flags = |more: &[&'static str]| place.flags("50", &out, more);

    let seeds = errors(job(&[
        (1, flags(&["--seed", "0"])),
        (2, flags(&["--seed", "1"])),
    ]));
    assert_eq!(seeds.len(), 1, "{seeds:?}");
    assert!(
        seeds[0].contains("the setting seed is 1 on rank 1, but 0 on rank 0"),
        "{seeds:?}"
    );

    let mut elsewhere = flags(&[]);
    let data = elsewhere.iter().position(|flag| *flag == "--data").unwrap();
    elsewhere[data + 1] = "no/such/folder";
    let missing = errors(job(&[(2, flags(&[])), (1, elsewhere)]));
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].contains("rank 2: no/such/folder"), "{missing:?}");
    assert!(!out.exists());

    // Rank 0 alone looks into the folder.
    fs::create_dir(&out).unwrap();
    fs::write(out.join("config.toml"), "").unwrap();
    let taken = errors(job(&[(2, flags(&[]))]));
    assert_eq!(taken.len(), 1, "{taken:?}");
    assert!(taken[0].contains("already holds a run"), "{taken:?}");

    let flag = errors(job(&[(2, vec!["--rank-timeout", "0"])]));
    assert_eq!(flag.len(), 1, "{flag:?}");
    assert!(flag[0].contains("'--rank-timeout <S>'"), "{flag:?}");
}

/// Without the feature, several processes would each write the same run, and are refused with what to do; one is as always.
#[test]
#[cfg(not(feature = "mpi"))]
fn several_processes_are_refused_without_the_feature() {
    let place = Place::new();
    let out = place.out("out");
    for (name, size) in [
        ("OMPI_COMM_WORLD_SIZE", "2"),
        ("PMI_SIZE", "3"),
        ("PMI_SIZE", "1"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_scalebio"));
        command
            .arg("reweight")
            .args(place.flags("2", &out, &[]))
            .env(name, size);
        let output = command.output().unwrap();
        let errors = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.success(), size == "1", "{errors}");
        assert_eq!(out.exists(), size == "1");
        let said = format!("started as {size} processes");
        assert!(
            size == "1" || errors.contains(&said) && errors.contains("--features mpi"),
            "{errors}"
        );
    }
}
