//! Devices of other machines, through Burn's remote backend over WebSocket.

use std::env;
use std::net::{TcpStream, ToSocketAddrs};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use burn::remote::{ConnectError, RemoteHost};
use burn::tensor::Device;

use super::{unknown, unusable};
use crate::error::{Error, Result};

/// The environment variable with the token. Not a part of the name, which is written to files and shown by `ps`.
const TOKEN: &str = "SCALEBIO_TOKEN";
/// How long each address of a host gets to accept a connection.
const ACCEPT: Duration = Duration::from_secs(5);
/// How long the server gets to answer on it.
const ANSWER: Duration = Duration::from_secs(10);

/// What to do about a server that cannot be talked to.
const START: &str = "is `scalebio serve` running there, and does a firewall let its port through?";

/// The devices that were opened here, with their names.
static OPENED: Mutex<Vec<(String, Device)>> = Mutex::new(Vec::new());

/// The device `name`, which is `ws:` and `place`.
pub(super) fn open(name: &str, place: &str) -> Result<Device> {
    let Some((address, index)) = split(place) else {
        return Err(unknown(name));
    };
    let token = match env::var(TOKEN) {
        Ok(token) => token,
        Err(env::VarError::NotPresent) => String::new(), // a server may do without
        Err(env::VarError::NotUnicode(_)) => {
            return Err(unusable(name, format!("{TOKEN} is not valid UTF-8")));
        }
    };
    // Burn would try for 16 s where nothing listens, and wait without end where nothing answers.
    reach(address)
        .map_err(|reason| unusable(name, format!("cannot be reached ({reason}); {START}")))?;
    let host = RemoteHost::websocket(&format!("ws://{address}"));
    let host = match token.as_str() {
        "" => host,
        token => host.with_credential(token),
    };
    let options = Device::remote_options(&host).device_index(index);
    let (sender, opened) = mpsc::channel();
    thread::spawn(move || drop(sender.send(options.init())));
    let device = match opened.recv_timeout(ANSWER) {
        Ok(Ok(device)) => device,
        Ok(Err(error)) => return Err(unusable(name, refusal(&error, token.is_empty()))),
        Err(_) => {
            let message = format!("what listens there is no server of devices; {START}");
            return Err(unusable(name, message));
        }
    };
    // Burn keeps the session of a device for the life of the process, also one that has ended.
    if is_lost(&device) {
        return Err(unusable(name, LOST.to_owned()));
    }
    let mut opened = OPENED.lock().unwrap_or_else(PoisonError::into_inner);
    if !opened.iter().any(|(_, known)| *known == device) {
        opened.push((name.to_owned(), device.clone()));
    }
    Ok(device)
}

/// `//HOST:PORT[/N]` as address and index.
fn split(place: &str) -> Option<(&str, usize)> {
    let place = place.strip_prefix("//")?;
    let (address, index) = match place.split_once('/') {
        None | Some((_, "")) => (place.trim_end_matches('/'), 0),
        Some((address, index)) => (address, index.parse().ok()?),
    };
    let (host, port) = address.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    (!host.is_empty() && port > 0).then_some((address, index))
}

fn reach(address: &str) -> std::io::Result<()> {
    let mut reason = std::io::Error::other("the host has no address");
    for address in address.to_socket_addrs()? {
        match TcpStream::connect_timeout(&address, ACCEPT) {
            Ok(_) => return Ok(()),
            Err(error) => reason = error,
        }
    }
    Err(reason)
}

fn refusal(error: &ConnectError, without_token: bool) -> String {
    match error {
        ConnectError::Unauthorized if without_token => {
            format!("the server asks for a token; set {TOKEN} to that of the server")
        }
        ConnectError::Unauthorized => {
            format!("the server refuses the token; set {TOKEN} to that of the server")
        }
        ConnectError::NoSuchDevice { device_count } => {
            format!("the server has {device_count} device(s), counted from 0; use one of those")
        }
        ConnectError::IncompatibleProtocol { .. } => {
            format!("{error}; run the same version of scalebio on both machines")
        }
        ConnectError::Handshake { .. } => {
            format!("{error}; is this `scalebio serve`, and of the same version?")
        }
        _ => format!("{error}; {START}"),
    }
}

const LOST: &str = "the connection is lost: the server has ended or failed (its output says why), the network broke, or a \
                    tensor was larger than 1 GiB; what was on the device is gone, and only a new process can connect again";

/// See [`catch_lost_device`](super::catch_lost_device).
pub(super) fn catch<T, E: From<Error>>(
    work: impl FnOnce() -> std::result::Result<T, E>,
) -> std::result::Result<T, E> {
    let panic = match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => return result,
        Err(panic) => panic,
    };
    let opened = OPENED
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .clone();
    match opened.iter().rfind(|(_, device)| is_lost(device)) {
        Some((name, _)) => Err(unusable(name, LOST.to_owned()).into()),
        None => resume_unwind(panic),
    }
}

/// Asks the server for a sign of life; this waits for what it computes.
fn is_lost(device: &Device) -> bool {
    !matches!(catch_unwind(AssertUnwindSafe(|| device.sync())), Ok(Ok(())))
}
