//! `loopbox cp`: files of an image, copied to this machine; and files of this machine, copied into an image.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use block::{Error, Kind, ResultExt as _};
use format::spec::Spec;
use fs::FileType;
use fs::extract::{Destination, Options, Report, extract};
use fs::insert;
use fs::path::{LastLink, last_name, resolve};
use rustix::fs::{Mode, OFlags};

use super::{Result, Status};
use crate::inside::{Changed, Inside, now};
use crate::print;
use crate::progress::{Shown, ShownIn};

/// Copy files out of an image, with all that belongs to them, or into one.
///
/// With IMAGE:PATH as DEST, files and directories of this machine are copied into a FAT or exFAT file system, with no
/// mount; what such a file system cannot hold (owners, links) is not copied.
///
/// Directories are copied with all that is in them. Modes, owners (as far as this user may give them), times, symbolic
/// and hard links, extended attributes and holes are kept, as by `cp -a`. Into a directory that exists, a copy goes under
/// its own name; a whole image, or a path that ends in `/.`, goes right into it. What is there already is replaced, and
/// directories are merged. Nothing is ever written outside of DEST, whatever names and links the image holds.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images, or files and directories in them; files of this machine, to be copied into an image.
    #[arg(value_name = "IMAGE[:PATH]", required = true)]
    sources: Vec<OsString>,

    /// Where to: a directory, or a new name; IMAGE:PATH for one in an image.
    #[arg(value_name = "DEST")]
    destination: PathBuf,

    /// As always: directories with all that is in them.
    #[arg(short = 'r', visible_short_alias = 'R', long)]
    recursive: bool,

    /// As always: all that belongs to a file.
    #[arg(short, long)]
    archive: bool,

    /// Say what is copied.
    #[arg(short, long)]
    verbose: bool,

    /// No progress bar.
    #[arg(short, long)]
    quiet: bool,

    /// Stop at the first failure.
    #[arg(long)]
    fail_fast: bool,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// Copies; a file that cannot be copied is reported, and the rest goes on.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    if let (image, Some(_)) = format::spec::split_path(args.destination.as_os_str(), Path::exists)
        && Path::new(&Spec::parse(image)?.path).is_file()
    {
        return copy_in(args);
    }
    let mut total = Report::default();
    for text in &args.sources {
        let inside = Inside::open(text, LastLink::Keep)?;
        let to = destination(&inside, &args.destination, args.sources.len() > 1)?;
        let shown = Shown::new(&inside, args.verbose, !args.quiet && !args.verbose);
        let options = Options { fail_fast: args.fail_fast, ..Options::default() };
        let outcome = extract(&*inside.fs, inside.inode, to, options, &shown);
        shown.finish();
        let report = outcome?;
        total.failures += report.failures;
        total.owners_left += report.owners_left;
        total.xattrs_left += report.xattrs_left;
        total.devices_left += report.devices_left;
        if args.fail_fast && total.failures > 0 {
            break;
        }
    }
    let files = |n: u64| if n == 1 { "1 file".to_owned() } else { format!("{n} files") };
    if total.owners_left > 0 {
        print::warning(&format!(
            "{} not given the owner that the image says: that takes root",
            files(total.owners_left)
        ));
    }
    if total.devices_left > 0 {
        print::warning(&format!("{} left out that are devices: making them takes root", files(total.devices_left)));
    }
    if total.xattrs_left > 0 {
        let n = total.xattrs_left;
        print::warning(&format!("{n} extended attributes left out: this user may not set them here"));
    }
    Ok(if total.failures > 0 { Status::No } else { Status::Done })
}

/// Copies files of this machine into an image.
fn copy_in(args: &Args) -> Result {
    let changed = Changed::open(args.destination.as_os_str())?;
    let copied = copy_all_in(args, &changed);
    let failures = changed.close(copied)?;
    Ok(if failures > 0 { Status::No } else { Status::Done })
}

fn copy_all_in(args: &Args, changed: &Changed) -> block::Result<u64> {
    let fs = &*changed.fs;
    let there = match resolve(fs, &changed.path, LastLink::Follow) {
        Ok(inode) => Some(inode).filter(|inode| fs.stat(*inode).is_ok_and(|s| s.file_type == FileType::Directory)),
        Err(error) if error.kind() == Kind::NotFound => None,
        Err(error) => return Err(error),
    };
    if there.is_none() && (args.sources.len() > 1 || changed.path.ends_with(b"/")) {
        return Err(Error::new(Kind::NotDirectory, "several files, or a path with a slash at its end"));
    }
    let mut failures = 0;
    for source in &args.sources {
        let path = Path::new(source);
        if !path.exists()
            && matches!(format::spec::split_path(source, Path::exists), (image, Some(_)) if Path::new(image).exists())
        {
            let text = format!("{}: from one image into another; copy it out of the one first", path.display());
            return Err(Error::new(Kind::Unsupported, text));
        }
        // A link that was named stands for what it points to, as with cp.
        let real = std::fs::canonicalize(path).context(|| path.display().to_string())?;
        let own = path.file_name().filter(|_| !source.as_bytes().ends_with(b"/."));
        let (directory, name) = match there {
            Some(directory) => (directory, own.map(|name| name.as_bytes())),
            None => {
                let (directory, name) = changed.parent_and_name()?;
                (directory, Some(name))
            }
        };
        let shown = ShownIn::new(&real, &changed.image, args.verbose, !args.quiet && !args.verbose);
        let options = insert::Options { fail_fast: args.fail_fast, time_max: None };
        let report = insert::insert(fs, &real, directory, name, now(), options, &shown);
        shown.finish();
        failures += report?.failures;
    }
    Ok(failures)
}

/// Where a source goes, as `cp` decides it.
fn destination(inside: &Inside, path: &Path, several: bool) -> block::Result<Destination> {
    let directory = inside.stat()?.file_type == FileType::Directory;
    let own_name = last_name(&inside.path);
    match std::fs::metadata(path) {
        Ok(there) if there.is_dir() => {
            let name = own_name.map(<[u8]>::to_vec);
            let opened = open_directory(path)?;
            if name.is_none() && !directory {
                return Err(Error::new(Kind::Invalid, format!("{} has no name of its own", inside.shown(b""))));
            }
            Ok(Destination { directory: opened, name })
        }
        Ok(_) if directory || several => {
            let error = std::io::Error::from_raw_os_error(Kind::NotDirectory.errno());
            Err(Error::io(path.display().to_string(), error))
        }
        Err(_) if several => {
            let text = format!("{}: several files need a directory that is there", path.display());
            Err(Error::new(Kind::NotDirectory, text))
        }
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io(path.display().to_string(), error)),
        Err(_) if !directory && path.as_os_str().as_bytes().ends_with(b"/") => {
            let error = std::io::Error::from_raw_os_error(Kind::NotDirectory.errno());
            Err(Error::io(path.display().to_string(), error))
        }
        _ => {
            let name = path.file_name().ok_or_else(|| Error::new(Kind::NotFound, path.display().to_string()))?;
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
            Ok(Destination { directory: open_directory(parent)?, name: Some(name.as_bytes().to_vec()) })
        }
    }
}

/// A directory that the user named: links in its path are the user's own.
fn open_directory(path: &Path) -> block::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty()).map_err(std::io::Error::from).context(|| path.display().to_string())
}
