//! `loopbox tar`: a tree of an image as a tar archive.

use std::ffi::OsString;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use block::{Error, Kind, ResultExt as _};
use fs::archive::archive;
use fs::path::{LastLink, last_name};
use fs::stream::Stream;

use super::{Result, Status};
use crate::inside::Inside;
use crate::print;
use crate::progress::Shown;

/// Write files inside an image as a tar archive (POSIX pax).
///
/// Modes, owners, times with nanoseconds, links, devices, extended attributes, ACLs and holes are kept. The same tree
/// gives the same archive, byte for byte.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// An image, or a file or directory in it.
    #[arg(value_name = "IMAGE[:PATH]")]
    image: OsString,

    /// The archive, instead of standard output.
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Stop at the first file that cannot be read.
    #[arg(long)]
    fail_fast: bool,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// Writes the archive.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let stdout = std::io::stdout();
    if args.output.is_none() && stdout.is_terminal() {
        let text = "an archive on a terminal: give `-o FILE`, or a pipe";
        return Err(Error::new(Kind::Invalid, text).into());
    }
    let inside = Inside::open(&args.image, LastLink::Keep)?;
    let file = match &args.output {
        Some(path) => Some(File::create(path).context(|| format!("making {}", path.display()))?),
        None => None,
    };
    let mut stream = Stream::new(file.as_ref().map_or(stdout.as_fd(), File::as_fd));
    let name = last_name(&inside.path).unwrap_or(b".");
    let shown = Shown::new(&inside, false, args.output.is_some());
    let outcome = archive(&*inside.fs, inside.inode, name, &mut stream, args.fail_fast, &shown);
    shown.finish();
    let report = outcome?;
    if report.sockets_left > 0 {
        print::warning(&format!("{} sockets left out: an archive cannot hold them", report.sockets_left));
    }
    Ok(if report.failures > 0 { Status::No } else { Status::Done })
}
