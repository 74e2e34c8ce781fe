//! `loopbox detach`: an attached image is let go.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use block::{Error, Kind};
use export::fuse::Unmount;
use export::loop_device::{self, Detached, Device};
use export::registry::{Holding, Process, Registry, Use};
use export::ublk;

use super::mount::is_image;
use super::{Result, Status};
use crate::print;

/// Detach disks; when it says yes, all that was written is on the medium.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where a disk is (as `attach` printed it), or the image that is attached.
    #[arg(value_name = "DISK", required_unless_present = "all")]
    disks: Vec<PathBuf>,

    /// All that loopbox has attached for this user.
    #[arg(long, conflicts_with = "disks")]
    all: bool,

    /// Detach also what is in use: it is gone from sight, and goes when its users do.
    #[arg(long)]
    lazy: bool,
}

impl Args {
    /// `loopbox detach DISK …`.
    pub fn of(disks: &[OsString]) -> Self {
        Self { disks: disks.iter().map(PathBuf::from).collect(), all: false, lazy: false }
    }
}

/// Detaches each, and reports those that could not be.
pub fn run(args: &Args) -> Result {
    let registry = Registry::of_user()?;
    let mut failed = false;
    let mut report = |result: block::Result<()>| {
        if let Err(error) = result {
            print::error(&error);
            failed = true;
        }
    };
    let how = if args.lazy { Unmount::Lazy } else { Unmount::Plain };
    if args.all {
        for holding in registry.list()?.iter().filter(|holding| matches!(holding.used_as, Use::Disk | Use::Loop)) {
            report(registry.release(holding, how));
        }
        for process in registry.processes()?.iter().filter(|process| process.ublk.is_some()) {
            report(ublk::release(&registry, process, args.lazy));
        }
    }
    for disk in &args.disks {
        report(detach(&registry, disk, how));
    }
    Ok(if failed { Status::Code(2) } else { Status::Done })
}

fn detach(registry: &Registry, disk: &Path, how: Unmount) -> block::Result<()> {
    if let Some(holding) = find(&registry.list()?, disk) {
        return registry.release(&holding, how);
    }
    if let Some(process) = registry.processes()?.iter().find(|process| serves(process, disk)) {
        return ublk::release(registry, process, how == Unmount::Lazy);
    }
    if let Ok(device) = Device::named(disk) {
        return detach_from_kernel(&device, how == Unmount::Lazy);
    }
    let attached = loop_device::find(disk).unwrap_or_default();
    if attached.is_empty() {
        return Err(Error::new(Kind::NotFound, format!("{} is not attached", disk.display())));
    }
    attached.iter().try_for_each(|status| detach_from_kernel(&status.device(), how == Unmount::Lazy))
}

fn detach_from_kernel(device: &Device, lazy: bool) -> block::Result<()> {
    if let Detached::WhenReleased(users) = loop_device::detach(device, lazy)? {
        let users: Vec<String> = users.iter().map(ToString::to_string).collect();
        print::warning(&format!("{} goes when its users do: {}", device.path().display(), users.join(", ")));
    }
    Ok(())
}

/// Whether a process serves that disk of the kernel.
fn serves(process: &Process, disk: &Path) -> bool {
    process.ublk.is_some() && process.uri.as_deref().is_some_and(|uri| Path::new(uri) == disk)
}

/// The disk in user space that is meant by the path of its node, of a partition, of its folder, or of the image.
fn find(holdings: &[Holding], disk: &Path) -> Option<Holding> {
    let path = export::fuse::absolute(disk).unwrap_or_else(|_| disk.to_owned());
    let disks = || holdings.iter().filter(|holding| holding.used_as == Use::Disk);
    disks()
        .find(|holding| path.starts_with(&holding.point))
        .or_else(|| disks().find(|holding| is_image(&holding.image, &path)))
        .cloned()
}
