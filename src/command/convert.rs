//! `loopbox convert`: a disk, or a part of one, as an image of another format.

use std::ffi::OsString;
use std::path::PathBuf;

use block::{Error, Kind, ReadAt as _};
use export::copy::copy;
use format::sequential::Image;
use format::spec::Spec;

use super::create::Like;
use super::{Result, Status};
use crate::part::{Existing, Part};
use crate::progress;
use crate::stack::{Access, Stack};

/// Write a disk image as another: from any format that is read, to raw, qcow2, VHD, VHDX, VMDK or VDI; zeroes take no
/// room.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image, with its options: `disk.vmdk`, `disk.qcow2,backing`, `disk.img,partition=2`.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// The new file.
    #[arg(value_name = "FILE")]
    file: PathBuf,

    #[command(flatten)]
    like: Like,

    /// Compress the clusters (qcow2).
    #[arg(short, long)]
    compress: bool,

    /// Replace a file that is there, with one that is on the disk.
    #[arg(long)]
    force: bool,

    /// Return when the new file is on the disk, and not only in the memory of the system.
    #[arg(long)]
    fsync: bool,

    /// No progress bar.
    #[arg(short, long)]
    quiet: bool,
}

/// Converts; the new file has its name only when it is whole.
pub fn run(args: &Args) -> Result {
    let style = args.like.style(&args.file, args.compress)?;
    if !args.force && args.file.symlink_metadata().is_ok() {
        let context = format!("{} is there already: --force replaces it", args.file.display());
        return Err(Error::new(Kind::Exists, context).into());
    }
    let stack = Stack::open(&Spec::parse(&args.image)?, Access::ReadOnce)?;
    let part = Part::new(&args.file, if args.force { Existing::Replace } else { Existing::Refuse })?;
    let image = Image::begin(&part, &args.like.new_image(&args.file, style, stack.device.size())?)?;
    let bar = progress::bytes_bar(stack.device.size(), args.quiet);
    let advance = |bytes| {
        if let Some(bar) = &bar {
            bar.inc(bytes);
        }
    };
    let done = copy(&stack.device, &image, &advance).and_then(|()| image.finish());
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    done?;
    if args.fsync {
        part.finish_on_disk()?
    } else {
        part.finish()?
    }
    Ok(Status::Done)
}
