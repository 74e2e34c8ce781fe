//! `loopbox convert`: a disk, or a part of one, as an image of another format.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use backing::FileBacking;
use block::layer::Unflushed;
use block::{BlockDevice as _, Error, Kind, ReadAt as _, ResultExt as _, Storage};
use export::copy::{Target, copy};
use format::probe::Format;
use format::qcow2::{self, Qcow2};
use format::spec::Spec;

use super::create::Like;
use super::{Result, Status};
use crate::progress;
use crate::stack::{Access, Stack};

/// Write a disk image as another: from any format that is read, to raw or qcow2; zeroes take no room.
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

    /// Replace a file that is there.
    #[arg(long)]
    force: bool,

    /// No progress bar.
    #[arg(short, long)]
    quiet: bool,
}

/// Converts; the new file has its name only when it is whole.
pub fn run(args: &Args) -> Result {
    let format = args.like.format(&args.file)?;
    if format == Format::Raw {
        args.like.refuse_for_raw()?;
        if args.compress {
            return Err(Error::new(Kind::Invalid, "a raw image cannot be compressed: say --format qcow2").into());
        }
    }
    if !args.force && args.file.symlink_metadata().is_ok() {
        let context = format!("{} is there already: --force replaces it", args.file.display());
        return Err(Error::new(Kind::Exists, context).into());
    }
    let stack = Stack::open(&Spec::parse(&args.image)?, Access::ReadOnce)?;
    let mut name = OsString::from(".");
    name.push(args.file.file_name().ok_or_else(|| Error::new(Kind::Invalid, args.file.display().to_string()))?);
    name.push(format!(".{}", std::process::id()));
    let part = Part(args.file.with_file_name(name));
    let bar = progress::bytes_bar(stack.device.size(), args.quiet);
    let advance = |bytes| {
        if let Some(bar) = &bar {
            bar.inc(bytes);
        }
    };
    let done = write(args, &stack, format, &part.0, &advance);
    if let Some(bar) = &bar {
        bar.finish_and_clear();
    }
    done?;
    std::fs::rename(&part.0, &args.file).context(|| args.file.display().to_string())?;
    Ok(Status::Done)
}

/// A file in the making; gone when dropped, unless it was given its name.
struct Part(PathBuf);

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn write(args: &Args, stack: &Stack, format: Format, path: &Path, advance: &(dyn Fn(u64) + Sync)) -> block::Result<()> {
    let size = stack.device.size();
    if format == Format::Raw {
        let file = FileBacking::create(path, size)?;
        return copy(&stack.device, &Target::Device(&file), advance);
    }
    let what = args.like.qcow2(size)?;
    let file: Arc<dyn Storage> = Arc::new(Unflushed::new(FileBacking::create(path, 0)?));
    qcow2::create(&file, &what)?;
    let image = Qcow2::open(file, None)?;
    if args.compress {
        let write = |cluster: &[u8], offset: u64| image.write_compressed(cluster, offset);
        copy(&stack.device, &Target::Pieces(u64::from(what.cluster_bytes), &write), advance)?;
    } else {
        copy(&stack.device, &Target::Device(&image), advance)?;
    }
    image.flush()
}
