//! Images, and mounts of them by the kernel.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use block::{Extent, Limits, ReadAt, Result, Source, check_range};
use loopbox_fs::ext4::{Ext4, Options};
use rig::Scratch;

/// An image file as a device that does not tell holes: so that the holes of a file are its own, not the image's.
#[derive(Debug)]
pub(crate) struct Plain(backing::FileBacking);

impl ReadAt for Plain {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn limits(&self) -> Limits {
        self.0.limits()
    }
    fn read_at(&self, buf: &mut [u8], offset: u64) -> Result<()> {
        self.0.read_at(buf, offset)
    }
    fn extent_at(&self, offset: u64) -> Result<Extent<'_>> {
        check_range(self.size(), offset, 1)?;
        Ok(Extent { len: self.size() - offset, source: Source::Data })
    }
}

/// The image as a device.
pub(crate) fn device(image: &Path) -> Arc<dyn ReadAt> {
    Arc::new(Plain(backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap()))
}

/// The file system of an image, its journal replayed in memory.
pub(crate) fn open(image: &Path) -> Ext4 {
    Ext4::open(device(image), Options::default()).unwrap_or_else(|error| panic!("{}: {error:?}", image.display()))
}

/// Makes an image of `size` by mke2fs with `options` (separated by blanks), filled from `folder`.
pub(crate) fn make(scratch: &Scratch, name: &str, options: &str, folder: Option<&Path>, size: &str) -> PathBuf {
    let image = scratch.join(name);
    let mut command = Command::new(rig::which("mke2fs").unwrap());
    command.args(["-q", "-F"]).args(options.split_whitespace());
    if let Some(folder) = folder {
        command.arg("-d").arg(folder);
    }
    rig::run_command(command.arg(&image).arg(size));
    image
}

/// What debugfs says to `requests`; they may write.
pub(crate) fn debugfs(image: &Path, requests: &str) -> String {
    let mut command = Command::new(rig::which("debugfs").unwrap());
    let script = image.with_extension("debugfs");
    std::fs::write(&script, requests).unwrap();
    rig::run_command(command.arg("-w").arg("-f").arg(script).arg(image))
}

/// A mount by the kernel, gone when dropped.
pub(crate) struct Mount(pub(crate) PathBuf);

impl Mount {
    /// Mounts an image with `options` through a loop device; `None` where this kernel will not have it.
    pub(crate) fn try_new(image: &Path, options: &str) -> Option<Self> {
        let folder = image.with_extension("mount");
        std::fs::create_dir_all(&folder).unwrap();
        // Others may take the loop device that mount found free: then it is tried again.
        for _ in 0..20 {
            let mut command = Command::new("mount");
            command.args(["-t", "ext4", "-o"]).arg(format!("loop,{options}")).arg(image).arg(&folder);
            let output = rig::output(&mut command);
            if output.status.success() {
                return Some(Self(folder));
            }
            let text = rig::text(&output);
            if !text.contains("loop") {
                eprintln!("mount of {}: {text}", image.display());
                return None;
            }
        }
        None
    }

    pub(crate) fn new(image: &Path, options: &str) -> Self {
        Self::try_new(image, options).unwrap_or_else(|| panic!("mount of {}", image.display()))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut unmounted = Command::new("umount").arg(&self.0).status().is_ok_and(|status| status.success());
        if !unmounted {
            unmounted = Command::new("umount").arg("-l").arg(&self.0).status().is_ok_and(|status| status.success());
        }
        assert!(unmounted || std::thread::panicking(), "umount of {}", self.0.display());
    }
}
