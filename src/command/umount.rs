//! `loopbox umount`: what was mounted is taken away again.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use block::{Error, Kind};
use export::fuse::{KIND, Unmount, absolute, unmount};
use export::mount_table;
use export::registry::{Registry, Use};

use super::mount::is_image;
use super::{Result, Status};
use crate::print;

/// Unmount; when it says yes, the process that served the mount has ended and all that was written is on the medium.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where it is mounted, or the image that is.
    #[arg(value_name = "DIR", required_unless_present = "all")]
    points: Vec<PathBuf>,

    /// All that loopbox has mounted for this user.
    #[arg(short, long, conflicts_with = "points")]
    all: bool,

    /// Unmount also what is in use: it is gone from sight, and goes when its users do.
    #[arg(short, long)]
    lazy: bool,
}

impl Args {
    /// `loopbox umount DIR …`.
    pub fn of(points: &[OsString]) -> Self {
        Self { points: points.iter().map(PathBuf::from).collect(), all: false, lazy: false }
    }
}

/// Unmounts each, and reports those that could not be.
pub fn run(args: &Args) -> Result {
    let registry = Registry::of_user()?;
    let how = if args.lazy { Unmount::Lazy } else { Unmount::Plain };
    let results: Vec<block::Result<()>> = if args.all {
        let mounted = registry.list()?.into_iter().filter(|holding| is_mount(holding.used_as));
        // What was mounted last may lie on what was before.
        mounted.rev().map(|holding| registry.release(&holding, how)).collect()
    } else {
        args.points.iter().map(|point| take_away(&registry, point, how)).collect()
    };
    let errors: Vec<Error> = results.into_iter().filter_map(block::Result::err).collect();
    errors.iter().for_each(|error| print::error(error));
    Ok(if errors.is_empty() { Status::Done } else { Status::Code(2) })
}

fn is_mount(used_as: Use) -> bool {
    matches!(used_as, Use::Directory | Use::Kernel)
}

fn take_away(registry: &Registry, typed: &Path, how: Unmount) -> block::Result<()> {
    let point = absolute(typed).map_err(|error| Error::io(typed.display().to_string(), error))?;
    let mounted = || mount_table::at(&point);
    let was_ours = mounted()?.is_some_and(|mounted| mounted.kind == KIND);
    let holdings = registry.list()?;
    let mounts = || holdings.iter().rev().filter(|holding| is_mount(holding.used_as));
    let held = mounts().find(|holding| holding.point == point);
    if let Some(holding) = held.or_else(|| mounts().find(|holding| is_image(&holding.image, &point))) {
        return registry.release(holding, how);
    }
    match mounted()? {
        // Its server was dead: the registry has cleaned it away just now.
        None if was_ours => Ok(()),
        None => Err(Error::new(Kind::Invalid, format!("nothing is mounted on {}", typed.display()))),
        Some(_) if holdings.iter().any(|holding| holding.point == point) => {
            Err(Error::new(Kind::Invalid, format!("{} holds a disk: `loopbox detach` lets it go", typed.display())))
        }
        // Root may take away what anybody mounted; others what a loopbox of theirs left.
        Some(mounted) if mounted.kind == KIND || rustix::process::geteuid().is_root() => unmount(&point, how),
        Some(_) => Err(Error::new(Kind::NotPermitted, format!("{} was not mounted by loopbox", typed.display()))),
    }
}
