//! `loopbox mkdir`: directories are made in an image, with no mount.

use std::ffi::OsString;

use block::{Error, Kind};
use fs::{FileType, Writable};

use super::{Result, Status};
use crate::inside::{Changed, now};
use crate::print;

/// Make directories inside an image, with no mount.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directories in images.
    #[arg(value_name = "IMAGE:PATH", required = true)]
    directories: Vec<OsString>,

    /// Those above them too; one that is there already is no failure.
    #[arg(short, long)]
    parents: bool,
}

/// Makes them; one that cannot be made is reported, and the next ones follow.
pub fn run(args: &Args) -> Result {
    let mut status = Status::Done;
    for text in &args.directories {
        let made = Changed::open(text).and_then(|changed| {
            let made = make(args, &changed);
            changed.close(made)
        });
        match made {
            Err(error) if args.directories.len() == 1 => return Err(error.into()),
            Err(error) => {
                print::warning(&print::error_text(&error));
                status = Status::No;
            }
            Ok(()) => {}
        }
    }
    Ok(status)
}

fn make(args: &Args, changed: &Changed) -> block::Result<()> {
    let fs: &dyn Writable = &*changed.fs;
    if !args.parents {
        let (directory, name) = changed.parent_and_name()?;
        return fs.create(directory, name, FileType::Directory, now()).map(drop);
    }
    let mut above = fs.root();
    for name in changed.path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".") {
        if name == b".." {
            return Err(Error::new(Kind::Invalid, "a path with `..`, of which parts are to be made"));
        }
        above = match fs.lookup(above, name)? {
            Some(there) if fs.stat(there)?.file_type == FileType::Directory => there,
            Some(_) => return Err(Error::new(Kind::NotDirectory, fs::path::Printable(name).to_string())),
            None => fs.create(above, name, FileType::Directory, now())?,
        };
    }
    Ok(())
}
