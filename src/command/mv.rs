//! `loopbox mv`: files of an image get other names, with no mount.

use std::ffi::OsString;

use block::{Error, Kind};
use fs::FileType;
use fs::path::{LastLink, resolve};

use super::{Result, Status};
use crate::inside::{Changed, now};

/// Move or rename a file inside an image, with no mount.
///
/// Into a directory that is there it goes under its own name; a file that has the new name is replaced.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The file in an image.
    #[arg(value_name = "IMAGE:PATH")]
    from: OsString,

    /// Its new path in the same image: `/dir/name`, or the whole `IMAGE:/dir/name`.
    #[arg(value_name = "PATH")]
    to: OsString,

    /// Replace nothing.
    #[arg(short, long)]
    no_clobber: bool,
}

/// Moves it.
pub fn run(args: &Args) -> Result {
    let changed = Changed::open(&args.from)?;
    let moved = rename(args, &changed);
    changed.close(moved)?;
    Ok(Status::Done)
}

fn rename(args: &Args, changed: &Changed) -> block::Result<()> {
    let fs = &*changed.fs;
    let (directory, name) = changed.parent_and_name()?;
    let to = changed.path_in_it(&args.to)?;
    if let Ok(there) = resolve(fs, &to, LastLink::Keep)
        && fs.stat(there)?.file_type == FileType::Directory
        && fs.lookup(directory, name)? != Some(there)
    {
        return fs.rename((directory, name), (there, name), !args.no_clobber, now());
    }
    let name_to = fs::path::last_name(&to).ok_or_else(|| Error::new(Kind::Invalid, "a new path without a name"))?;
    let above = to.strip_suffix(b"/").unwrap_or(&to);
    let above = above.get(..above.len() - name_to.len()).unwrap_or_default();
    let above = resolve(fs, above, LastLink::Follow)?;
    fs.rename((directory, name), (above, name_to), !args.no_clobber, now())
}
