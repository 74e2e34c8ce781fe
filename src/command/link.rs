//! `loopbox link`: the link of a `loopbox run` that is running.

use std::path::PathBuf;

use net::driver::{Request, ask};
use net::rule::Rule;

use super::{Result, Status};
use crate::print;

/// Show or change the link of a `loopbox run` that is running.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The process number of the `loopbox run` that is meant, where there are several.
    #[arg(long, global = true, value_name = "PID")]
    run: Option<u32>,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// The rules, and what became of the packets so far.
    Show,
    /// Other rules from now on, each as after `--rule`; none: every packet passes at once.
    Set {
        /// The rules.
        rules: Vec<String>,
    },
}

/// The socket of the run with this process number.
///
/// # Errors
/// Those of making the folder.
pub fn socket(pid: u32) -> std::result::Result<PathBuf, block::Error> {
    Ok(export::registry::folder::of_user()?.join(format!("run-{pid}.socket")))
}

/// Asks the run.
pub fn run(args: &Args) -> Result {
    let request = match &args.verb {
        Verb::Show => Request::Show,
        Verb::Set { rules } => {
            for rule in rules {
                rule.parse::<Rule>()?;
            }
            Request::Set(rules.clone())
        }
    };
    let path = match args.run {
        Some(pid) => socket(pid)?,
        None => the_only_one()?,
    };
    print::bytes(ask(&path, &request)?.as_bytes())?;
    Ok(Status::Done)
}

/// The socket of the only run; those of runs that were killed are taken away.
fn the_only_one() -> std::result::Result<PathBuf, Box<dyn std::error::Error>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(export::registry::folder::of_user()?)? {
        let path = entry?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if !name.starts_with("run-") || !name.ends_with(".socket") {
            continue;
        }
        match std::os::unix::net::UnixStream::connect(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => std::fs::remove_file(&path)?,
            _ => found.push(path),
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => Err(net::Error::new(net::Kind::NotFound, "no `loopbox run` with a link is running").into()),
        more => {
            Err(net::Error::new(net::Kind::Invalid, format!("{} runs with a link: say --run PID", more.len())).into())
        }
    }
}
