//! Devices of another process, lent over loopback: the results of one device, and errors where it is not there or is lost.

use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor};
use scalebio::models::{CausalLm, Differentiation};
use scalebio::reweight::SampleLosses;
use scalebio::{Bilevel, Error, ScaleBio, Update, catch_lost_device};

use crate::blockwise::{FACTORS, batch, compare, folders, read};
use crate::examples::command;
use crate::lisa_gpt2::{LanguageRun, bits, resume_spread, start_apart, start_spread};
use crate::zoo::{Vector, largest_difference};

mod program;

/// Longer than any error may take to come.
const SOON: Duration = Duration::from_secs(60);

/// A server of devices, which ends with the test.
pub struct Server {
    child: Child,
    /// Of its first device.
    pub name: String,
}

impl Server {
    /// Without a token, for this process.
    fn of(devices: &str) -> Self {
        Self::start(&["--device", devices, "--no-token"], None)
    }

    pub fn start(arguments: &[&str], token: Option<&str>) -> Self {
        let mut command = command("device_server", arguments);
        command.args(["--listen", "127.0.0.1:0"]);
        command.env_remove("SCALEBIO_TOKEN");
        command.envs(token.map(|token| ("SCALEBIO_TOKEN", token)));
        command.stdout(Stdio::piped()).stderr(Stdio::inherit());
        let mut child = command.spawn().unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        output.read_line(&mut line).unwrap();
        let (_, name) = line.trim_end().split_once(" at ").unwrap();
        // What it prints later must go somewhere.
        thread::spawn(move || output.lines().for_each(drop));
        Self {
            name: name.to_owned(),
            child,
        }
    }

    /// Its device with this number.
    fn device(&self, index: usize) -> Device {
        let device = scalebio::device(&format!("{}/{index}", self.name));
        device.unwrap().autodiff()
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn flex() -> Device {
    Device::flex().autodiff()
}

fn take(run: &mut LanguageRun, steps: usize) {
    run.by_ref()
        .take(steps)
        .for_each(|step| drop(step.unwrap()));
}

fn weights(devices: &[Device]) -> Vec<f64> {
    let mut run = start_spread(devices);
    take(&mut run, 20);
    run.upper().weights()
}

/// The whole of a run on a server, blocks here and there, and blocks on two devices of one server: twenty steps of LISA lead to
/// the weights of the local run, whichever device the server lends.
#[test]
fn remote_devices_learn_the_weights_of_local_ones() {
    let local = weights(&[flex()]);
    assert!((local[0] - 0.5).abs() > 1e-3, "nothing was learned");
    for kind in ["flex", "ndarray"] {
        let server = Server::of(&format!("{kind},{kind}"));
        let [first, second] = [0, 1].map(|index| server.device(index));
        for devices in [
            vec![first.clone()],
            vec![flex(), first.clone()],
            vec![first.clone(), flex()],
            vec![flex(), first, second],
        ] {
            let remote = weights(&devices);
            assert!(
                largest_difference(&remote, &local) < 1e-4,
                "{kind}, {devices:?}: {remote:?} {local:?}"
            );
        }
    }
}

/// `u` on a server and `w` here, at the same time or in turn: twenty steps lead to the weights of the local run.
#[test]
fn remote_u_and_local_w_learn_the_weights_of_local_ones() {
    let local = weights(&[flex()]);
    let server = Server::of("flex");
    let [here, there] = [flex(), server.device(0)];
    for parallel in [false, true] {
        let run = start_apart(&here, &there);
        let mut run = if parallel { run.in_parallel() } else { run };
        take(&mut run, 20);
        let remote = run.upper().weights();
        assert!(
            largest_difference(&remote, &local) < 1e-4,
            "{remote:?} {local:?}"
        );
    }
}

/// A server lends a GPU, here Mesa's software one. Skips with a message where there is none.
#[cfg(feature = "wgpu")]
#[test]
fn remote_gpus_learn_the_weights_of_the_cpu() {
    if let Err(error) = scalebio::device("wgpu:cpu") {
        return crate::zoo::say(&format!("skipped: {error}"));
    }
    let server = Server::of("wgpu:cpu");
    let (local, remote) = (weights(&[flex()]), weights(&[flex(), server.device(0)]));
    assert!(
        largest_difference(&remote, &local) < 1e-3,
        "{remote:?} {local:?}"
    );
}

/// For each of the seven architectures, and however gradients are computed: losses and gradients of a model whose upper blocks
/// are on a server are those of one device.
#[test]
fn remote_blocks_have_the_gradients_of_local_ones() {
    let server = Server::of("flex");
    let devices = [flex(), server.device(0)];
    for folder in folders("hf") {
        let model = CausalLm::from_pretrained(&folder, &devices[0]).unwrap();
        let batch = batch(model.vocabulary_size());
        let (losses, gradients) = model.differentiate(&batch, &FACTORS).unwrap();
        let expected = (losses, read(&model, &gradients));
        let spread = model.spread(&devices).unwrap();
        for how in [Differentiation::Plain, Differentiation::Balanced] {
            let spread = spread.clone().with_differentiation(how);
            let (losses, gradients) = spread.differentiate(&batch, &FACTORS).unwrap();
            let what = format!("{}, {how:?}", folder.display());
            compare((losses, read(&spread, &gradients)), &expected, &what);
        }
    }
}

/// Several runs at a time, each with a session of its own, do not disturb each other.
#[test]
fn remote_devices_serve_several_runs_at_a_time() {
    let server = Server::of("flex,flex,flex");
    let local = weights(&[flex()]);
    thread::scope(|scope| {
        let runs = [0, 1, 2].map(|index| {
            let device = server.device(index);
            scope.spawn(move || weights(&[device]))
        });
        for run in runs {
            assert!(largest_difference(&run.join().unwrap(), &local) < 1e-4);
        }
    });
}

/// A checkpoint of a run on a server holds its bits, and what goes on from it is the run itself.
#[test]
fn remote_checkpoints_resume_bit_for_bit() {
    let server = Server::of("flex");
    let devices = [flex(), server.device(0)];
    let folder = tempfile::tempdir().unwrap();
    let mut run = start_spread(&devices);
    take(&mut run, 5);
    run.checkpoint(folder.path()).unwrap();
    let at_checkpoint = bits(run.auxiliary());
    take(&mut run, 5);
    let mut again = resume_spread(&devices, folder.path());
    assert_eq!(bits(again.auxiliary()), at_checkpoint);
    take(&mut again, 5);
    assert_eq!(bits(again.lower()), bits(run.lower()));
    assert_eq!(bits(again.auxiliary()), bits(run.auxiliary()));
    assert_eq!(again.upper().logit_values(), run.upper().logit_values());
}

/// Whether this is a process with one test only. If not, the test is run in one: a lost device is lost for its process, and the
/// servers of other tests end too.
fn alone(test: &str) -> bool {
    const ALONE: &str = "SCALEBIO_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut process = Command::new(std::env::current_exe().unwrap());
    process.args([&format!("remote::{test}"), "--exact", "--nocapture"]);
    let output = process.env(ALONE, "1").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
    false
}

fn lost<T: std::fmt::Debug>(result: scalebio::Result<T>, server: &Server) -> String {
    match result {
        Err(Error::Device { device, message }) => {
            assert!(device.starts_with(&server.name), "{device}");
            assert!(message.starts_with("the connection is lost"), "{message}");
            message
        }
        other => panic!("{other:?}"),
    }
}

/// The promise: where the server dies in a run, the next step is an error within seconds, so is a checkpoint, which leaves the
/// last one whole; and that one goes on with a new server, or without any, to the weights of a run that was left alone.
#[test]
fn remote_device_that_dies_is_an_error_and_its_run_goes_on_elsewhere() {
    if !alone("remote_device_that_dies_is_an_error_and_its_run_goes_on_elsewhere") {
        return;
    }
    let expected = weights(&[flex()]);
    let folder = tempfile::tempdir().unwrap();
    let mut server = Server::of("flex");
    let mut run = start_spread(&[flex(), server.device(0)]);
    take(&mut run, 8);
    run.checkpoint(folder.path()).unwrap();
    take(&mut run, 2);

    let time = Instant::now();
    let pid = server.child.id();
    let killer = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20)); // in the middle of a step
        let mut kill = Command::new("kill");
        kill.args(["-KILL", &pid.to_string()]).status().unwrap()
    });
    let error = run.find_map(Result::err).unwrap();
    killer.join().unwrap();
    lost(Err::<(), _>(error), &server);
    assert!(run.next().is_none());
    lost(run.checkpoint(folder.path()), &server);
    drop(run);
    server.kill();
    // Asked for again, the device says the same, or that nothing is there.
    assert!(scalebio::device(&server.name).is_err());
    assert!(time.elapsed() < SOON);
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    let another = Server::of("ndarray");
    for devices in [vec![flex(), another.device(0)], vec![flex()]] {
        let mut run = resume_spread(&devices, folder.path());
        assert_eq!(run.steps(), 8);
        take(&mut run, 12);
        assert!(largest_difference(&run.upper().weights(), &expected) < 1e-4);
    }
}

/// `u`'s thread may be the one that meets the loss.
#[test]
fn remote_device_that_dies_is_an_error_of_a_parallel_run() {
    if !alone("remote_device_that_dies_is_an_error_of_a_parallel_run") {
        return;
    }
    let mut server = Server::of("flex");
    let device = server.device(0);
    let problem = Bilevel {
        upper: |_: &Vector, w: &Vector| (w.val() - 3.0).square().sum(),
        lower: |x: &Vector, w: &Vector| (w.val() - x.val()).square().sum(),
    };
    let zeros = || Vector::from_data([0.0, 0.0], &device);
    let method = ScaleBio::new(Update::sgd(0.1), Update::sgd(0.02));
    let mut run = method
        .start(problem, zeros(), zeros())
        .unwrap()
        .in_parallel();
    run.by_ref().take(3).for_each(|step| drop(step.unwrap()));
    server.kill();
    lost(run.find_map(Result::err).map_or(Ok(()), Err), &server);
}

/// What fails on the server (here an index out of range) is an error of that session; others go on.
#[test]
fn remote_device_that_fails_is_an_error_and_the_server_goes_on() {
    if !alone("remote_device_that_fails_is_an_error_and_the_server_goes_on") {
        return;
    }
    let server = Server::of("flex,flex");
    let broken = server.device(0).inner();
    let result = catch_lost_device(|| {
        let index = Tensor::<1, burn::tensor::Int>::from_data([1_000_000_000], &broken);
        let tensor = Tensor::<1>::from_data([1.0, 2.0], &broken);
        Ok::<f32, Error>(tensor.select(0, index).into_scalar())
    });
    lost(result, &server);
    let sum = Tensor::<1>::from_data([1.0, 2.0], &server.device(1)).sum();
    assert_eq!(sum.into_scalar::<f32>().to_bits(), 3.0_f32.to_bits());
}

/// A panic that no lost device explains stays a panic.
#[test]
fn remote_devices_do_not_hide_other_panics() {
    if !alone("remote_devices_do_not_hide_other_panics") {
        return;
    }
    let server = Server::of("flex");
    let _device = server.device(0);
    let work = || catch_lost_device(|| -> Result<(), Error> { panic!("a defect") });
    let panic = catch_unwind(AssertUnwindSafe(work)).unwrap_err();
    assert_eq!(panic.downcast_ref::<&str>(), Some(&"a defect"));
}

fn refused(name: &str) -> String {
    let time = Instant::now();
    let error = scalebio::device(name).unwrap_err();
    assert!(matches!(error, Error::Device { .. }), "{error:?}");
    assert!(time.elapsed() < SOON);
    error.to_string()
}

/// A device that cannot be opened is an error that says what to do, soon.
#[test]
fn remote_devices_that_are_not_there_are_refused() {
    let server = Server::of("flex");
    let text = refused(&format!("{}/1", server.name));
    assert!(text.contains("the server has 1 device(s)"), "{text}");

    for name in [
        "ws",
        "ws:",
        "ws://",
        "ws://127.0.0.1",
        "ws://127.0.0.1:0",
        "ws://:3000",
        "ws://127.0.0.1:70000",
        "ws://127.0.0.1:3000/first",
        "wss://127.0.0.1:3000",
    ] {
        let text = refused(name);
        assert!(text.contains("`ws://HOST:PORT[/N]`"), "{text}");
    }

    // Nothing listens, something listens that does not accept, and something that says nothing.
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    let text = refused(&format!("ws://{address}"));
    assert!(text.contains("no server of devices"), "{text}");
    drop(free);
    let text = refused(&format!("ws://{address}"));
    assert!(text.contains("cannot be reached"), "{text}");
    let text = refused("ws://no-such-host.invalid:3000");
    assert!(text.contains("cannot be reached"), "{text}");
}
