//! `loopbox run`: a command with a loopback network of its own.

use std::ffi::OsString;
use std::net::IpAddr;

use net::publish::Publish;
use sandbox::Ended;
use sandbox::plan::{Net, Options, Plan, Starter};

use super::{Result, Status};
use crate::print;

/// Run a command with a loopback network of its own.
///
/// Exit status: that of the command; 126 when it cannot be run, 127 when it is not found. A signal that ends the command
/// ends loopbox as well.
#[derive(Debug, clap::Args)]
#[command(override_usage = "loopbox run [OPTIONS] [--] COMMAND [ARGUMENT]...")]
pub struct Args {
    /// The network: `private`, with nothing but an `lo` on which every port is free; or the machine's, `host`.
    #[arg(long, value_enum, default_value_t, value_name = "NETWORK", help_heading = "Network")]
    net: Network,
    /// Let the outside reach a port: of the machine (at 127.0.0.1, or ADDRESS), and inside where it is another.
    #[arg(long, value_name = "[ADDRESS:]PORT[:PORT][/udp]", help_heading = "Network")]
    publish: Vec<Publish>,
    /// Give a name an address, inside only.
    #[arg(long, value_name = "NAME=ADDRESS", value_parser = host, help_heading = "Network")]
    host: Vec<(String, IpAddr)>,
    /// Print the steps, and do none.
    #[arg(long)]
    dry_run: bool,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

#[derive(Debug, Clone, Copy, Default, clap::ValueEnum)]
enum Network {
    #[default]
    Private,
    Host,
}

fn host(text: &str) -> std::result::Result<(String, IpAddr), String> {
    let (name, address) = text.split_once('=').ok_or("not NAME=ADDRESS")?;
    let address = address.parse().map_err(|_| format!("not an address: {address}"))?;
    Ok((name.to_owned(), address))
}

/// Plans, spawns, and passes the end of the command on.
pub fn run(args: Args) -> Result {
    let options = Options {
        net: match args.net {
            Network::Private => Net::Private,
            Network::Host => Net::Host,
        },
        publish: args.publish,
        hosts: args.host,
        host_name: rustix::system::uname().nodename().to_string_lossy().into_owned(),
        nsswitch: std::fs::read_to_string("/etc/nsswitch.conf").ok(),
        command: args.command,
    };
    let plan = Plan::new(&options, &Starter::current())?;
    if args.dry_run {
        print::bytes(plan.to_string().as_bytes())?;
        return Ok(Status::Done);
    }
    match sandbox::spawn(&plan)?.run()? {
        Ended::Exited(status) => Ok(Status::Code(status)),
        Ended::Signalled(signal) => {
            end_as(signal);
            Ok(Status::Code(u8::try_from(signal + 128).unwrap_or(u8::MAX)))
        }
        Ended::NotStarted(errno) => {
            let program = options.command.first().map(|word| word.display().to_string()).unwrap_or_default();
            let error = std::io::Error::from_raw_os_error(errno);
            let status = if error.kind() == std::io::ErrorKind::NotFound { 127 } else { 126 };
            print::error(&net::Error::io(format!("running {program}"), error));
            Ok(Status::Code(status))
        }
    }
}

/// Ends this process by a signal, without a core dump, so that a shell sees what it would see of the command itself.
fn end_as(signal: i32) {
    use rustix::process::{Resource, Rlimit, Signal, getpid, kill_process, setrlimit};
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Some(signal) = Signal::from_named_raw(signal) {
        let _ = kill_process(getpid(), signal);
    }
}
