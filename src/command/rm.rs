//! `loopbox rm`: files of an image are removed, with no mount.

use std::ffi::OsString;

use block::{Error, Kind};
use fs::path::Printable;
use fs::{FileType, Inode, Writable};

use super::{Result, Status};
use crate::inside::Changed;
use crate::print;

/// How many directories may lie inside each other.
const DEPTH_MAX: usize = 1024;

/// Remove files inside an image, with no mount.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files in images.
    #[arg(value_name = "IMAGE:PATH", required = true)]
    files: Vec<OsString>,

    /// Directories too, with all that is in them.
    #[arg(short = 'r', visible_short_alias = 'R', long)]
    recursive: bool,

    /// What is not there is no failure.
    #[arg(short, long)]
    force: bool,
}

/// Removes; a file that cannot be removed is reported, and the next ones follow.
pub fn run(args: &Args) -> Result {
    let mut status = Status::Done;
    for text in &args.files {
        let removed = Changed::open(text).and_then(|changed| {
            let removed = remove(args, &changed);
            changed.close(removed)
        });
        match removed {
            Err(error) if args.force && error.kind() == Kind::NotFound => {}
            Err(error) if args.files.len() == 1 => return Err(error.into()),
            Err(error) => {
                print::warning(&print::error_text(&error));
                status = Status::No;
            }
            Ok(()) => {}
        }
    }
    Ok(status)
}

fn remove(args: &Args, changed: &Changed) -> block::Result<()> {
    let (directory, name) = changed.parent_and_name()?;
    let fs = &*changed.fs;
    let inode = fs.lookup(directory, name)?.ok_or_else(|| Error::new(Kind::NotFound, "no such file"))?;
    let is_directory = fs.stat(inode)?.file_type == FileType::Directory;
    if is_directory && !args.recursive {
        return Err(Error::new(Kind::IsDirectory, "a directory: -r removes it with all that is in it"));
    }
    if is_directory {
        empty(fs, inode, 0)?;
    }
    fs.remove(directory, name, is_directory, crate::inside::now())
}

fn empty(fs: &dyn Writable, directory: Inode, depth: usize) -> block::Result<()> {
    if depth > DEPTH_MAX {
        return Err(Error::new(Kind::Limit, format!("a directory inside {DEPTH_MAX} others")));
    }
    for (name, inode) in fs::walk::entries(fs, directory, fs::walk::Order::Name)? {
        let is_directory = fs.stat(inode)?.file_type == FileType::Directory;
        if is_directory {
            empty(fs, inode, depth + 1)?;
        }
        let removed = fs.remove(directory, &name, is_directory, crate::inside::now());
        removed.map_err(|error| error.context(Printable(&name).to_string()))?;
    }
    Ok(())
}
