//! Lends devices of this machine to others.

use std::env;
use std::error::Error;
use std::net::TcpListener;

use scalebio::burn::server::{RemoteServer, TokenAuthorizer, WebSocketTransport};

use super::console::say;

/// The environment variable with the token, the same as for [`scalebio::device`].
const TOKEN: &str = "SCALEBIO_TOKEN";

const EXAMPLES: &str = "\
A client names the device ws://HOST:PORT, or ws://HOST:PORT/N for the N-th of several, from 0. Both sides
take the token from the environment variable SCALEBIO_TOKEN. Nothing is encrypted: a token keeps strangers
out of a network that is trusted; a tunnel (ssh -L 3000:localhost:3000 HOST) crosses one that is not. A
client with the token can use as much of the devices as it likes.

Examples:
  export SCALEBIO_TOKEN=$(openssl rand -hex 16)             # once; the same on the client's machine
  scalebio serve --device cuda:0,cuda:1 --listen 0.0.0.0:3000
  scalebio reweight --device ws://HOST:3000                 # on the client's machine";

/// Lend devices of this machine to other machines, until Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// Devices to lend, of one kind: flex, ndarray, wgpu[:cpu|:N] or cuda[:N]
    #[arg(
        long,
        value_name = "NAMES",
        value_delimiter = ',',
        default_value = "flex"
    )]
    device: Vec<String>,

    /// Address to listen on; port 0 takes a free one
    #[arg(long, value_name = "HOST:PORT", default_value = "127.0.0.1:3000")]
    listen: String,

    /// Serve whoever connects from this machine, without a token
    #[arg(long)]
    no_token: bool,
}

pub fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    let devices = args.device.iter().map(|name| scalebio::device(name));
    let mut server = RemoteServer::new(devices.collect::<Result<Vec<_>, _>>()?);
    let listener = TcpListener::bind(&args.listen)
        .map_err(|error| format!("cannot listen on {}: {error}", args.listen))?;
    let address = listener.local_addr()?;
    let token = env::var(TOKEN).unwrap_or_default();
    match (token.as_str(), args.no_token) {
        ("", true) if address.ip().is_loopback() => {}
        ("", true) => {
            return Err(format!(
                "--no-token serves this machine alone, but {address} can be reached from others; set {TOKEN}"
            )
            .into());
        }
        ("", false) => {
            return Err(format!(
                "no token: set {TOKEN} to a secret, here and on the client's machine (--no-token serves this machine \
                 without one)"
            )
            .into());
        }
        (_, true) => return Err(format!("--no-token, but {TOKEN} is set; unset one").into()),
        (token, false) => server = server.with_authorizer(TokenAuthorizer::new(token)?),
    }
    say!("{} at ws://{address}", args.device.join(", "))?;
    server.serve(WebSocketTransport::from_listener(listener))?;
    Ok(())
}
