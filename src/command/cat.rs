//! `loopbox cat`: files of an image, one after the other, on standard output.

use std::ffi::OsString;
use std::os::fd::AsFd as _;

use fs::FileType;
use fs::path::LastLink;
use fs::stream::{Failure, Stream, send};

use super::{Result, Status};
use crate::inside::Inside;
use crate::print;

/// Write files inside an image to standard output.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file in an image.
    #[arg(value_name = "IMAGE:PATH", required = true)]
    files: Vec<OsString>,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// Writes; a file that cannot be read is reported, and the next ones follow.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let stdout = std::io::stdout();
    let mut stream = Stream::new(stdout.as_fd());
    let mut status = Status::Done;
    for text in &args.files {
        let outcome = Inside::open(text, LastLink::Follow).map_err(Failure::Image).and_then(|inside| {
            let stat = inside.stat().map_err(Failure::Image)?;
            let failed = |error: block::Error| error.context(inside.shown(b""));
            match stat.file_type {
                FileType::Regular => {}
                FileType::Directory => return Err(Failure::Image(failed(block::Error::io("", errno(21))))),
                _ => {
                    let text = format!("no regular file but a {}", crate::listing::type_name(stat.file_type));
                    return Err(Failure::Image(failed(block::Error::new(block::Kind::Invalid, text))));
                }
            }
            send(&*inside.fs, inside.inode, 0, stat.size, &mut stream, &()).map_err(|failure| match failure {
                Failure::Image(error) => Failure::Image(failed(error)),
                output @ Failure::Output(_) => output,
            })
        });
        match outcome {
            Ok(()) => {}
            Err(Failure::Image(error)) if args.files.len() == 1 => {
                stream.flush()?;
                return Err(error.into());
            }
            Err(Failure::Image(error)) => {
                print::warning(&print::error_text(&error));
                status = Status::No;
            }
            Err(Failure::Output(error)) => return Err(error.into()),
        }
    }
    stream.flush()?;
    Ok(status)
}

fn errno(errno: i32) -> std::io::Error {
    std::io::Error::from_raw_os_error(errno)
}
