//! `loopbox hosts`: the names of the hosts file.

use std::net::IpAddr;
use std::path::PathBuf;

use net::hosts::{self, Entry, Hosts};

use super::{Result, Status};
use crate::print::{self, Style, Table};

/// The names of the hosts file: list, add, remove, check.
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    verb: Verb,
    /// The file.
    #[arg(long, global = true, default_value = hosts::PATH, value_name = "FILE")]
    file: PathBuf,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// The addresses and their names.
    List {
        /// Print JSON.
        #[arg(short, long)]
        json: bool,
    },
    /// Give a name an address. The file is replaced in one step; comments and order stay.
    Add {
        /// The name.
        name: String,
        /// Its address.
        #[arg(default_value = "127.0.0.1")]
        address: IpAddr,
    },
    /// Take a name away.
    Remove {
        /// The name.
        name: String,
        /// Only from this address.
        address: Option<IpAddr>,
    },
    /// What in the file does not do what its writer thinks; exit status 1 if anything.
    Check {
        /// Print JSON.
        #[arg(short, long)]
        json: bool,
    },
}

/// Reads, and writes what changed.
pub fn run(args: &Args) -> Result {
    let mut hosts = Hosts::read(&args.file)?;
    match &args.verb {
        Verb::List { json: true } => print::json(&hosts.entries().collect::<Vec<_>>())?,
        Verb::List { json: false } => {
            let mut table = Table::new();
            for Entry { address, names } in hosts.entries() {
                let names: Vec<String> = names.iter().map(|name| print::escaped(name.as_bytes())).collect();
                table.row([(Style::Name, address.to_string()), (Style::Plain, names.join(" "))]);
            }
            print::bytes(table.render().as_bytes())?;
        }
        Verb::Add { name, address } => {
            if hosts.add(name, *address)? {
                hosts.write(&args.file)?;
            }
        }
        Verb::Remove { name, address } => {
            if hosts.remove(name, *address) == 0 {
                return Ok(Status::No);
            }
            hosts.write(&args.file)?;
        }
        Verb::Check { json } => {
            let problems = hosts.check();
            if *json {
                print::json(&problems)?;
            } else {
                for problem in &problems {
                    print::line(&problem.to_string())?;
                }
            }
            return Ok(if problems.is_empty() { Status::Done } else { Status::No });
        }
    }
    Ok(Status::Done)
}
