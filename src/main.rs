//! loopbox gives a program its own disk, its own loopback network and its own sound card.
//!
//! The program holds no logic: words of the command line become calls of the libraries in `crates/`.
//!
//! ```text
//! certificate.rs  made on the spot, for `web` and `serve`
//! cli.rs        every command: its words, its help, its man page
//! command/      one file a command: `Args` and `run`
//! describe.rs   what is in a device, from all the libraries together
//! stack.rs      a spec becomes a device
//! index_cache.rs  indexes of compressed images, kept
//! part.rs       a file in the making
//! passphrase.rs  from the terminal, a file, a descriptor
//! losetup/      what it is when it is called by that name
//! print.rs      colours, tables, JSON, errors: all that is written for people
//! ```

#![forbid(unsafe_code)]

mod certificate;
mod cli;
mod command;
mod describe;
mod index_cache;
mod inside;
mod listing;
mod losetup;
mod part;
mod passphrase;
mod print;
mod progress;
mod stack;

use std::process::ExitCode;

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().peekable();
    if losetup::is_called(arguments.peek().map(|name| name.as_os_str())) {
        return losetup::main(arguments);
    }
    cli::main()
}
