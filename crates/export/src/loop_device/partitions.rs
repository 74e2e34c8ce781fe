//! The nodes of a device's partitions.
//!
//! The driver has read the partition table when it returns, and devtmpfs has the nodes by then; there is nothing to
//! wait for. A container's `/dev` is an ordinary folder: there they are made, and where even that is not allowed,
//! whoever looks after that folder from outside is given a moment.

use std::fs::File;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use block::{Error, Result};
use rustix::fs::{Dev, FileType, inotify};

use super::device::make_node;
use super::{Device, detach};

/// How long somebody else may take to make a node that we may not make.
const NODE_WAIT_MAX: Duration = Duration::from_secs(1);

/// A partition as the kernel knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Partition {
    /// Its number in the table.
    number: u32,
    /// Its node, which may be missing.
    pub(super) path: PathBuf,
    /// Its device number.
    pub(super) dev: Dev,
}

/// The partitions that the kernel found, by number; of a disk by its folder in `/sys/block`.
pub(super) fn found(disk: &Path) -> Vec<Partition> {
    let prefix = format!("{}p", disk.file_name().unwrap_or_default().to_string_lossy());
    let Ok(entries) = std::fs::read_dir(disk) else { return Vec::new() };
    let mut partitions: Vec<Partition> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(&prefix)?.parse().ok()?;
            Some(Partition { number, path: Path::new("/dev").join(&name), dev: dev_in(&entry.path())? })
        })
        .collect();
    partitions.sort_unstable_by_key(|partition| partition.number);
    partitions
}

/// The device number that a folder of `/sys/block` has.
pub(crate) fn dev_in(folder: &Path) -> Option<Dev> {
    let text = std::fs::read_to_string(folder.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?))
}

/// The device number of a block device's node.
pub(super) fn dev_of(node: &Path) -> Option<Dev> {
    let metadata = std::fs::metadata(node).ok()?;
    metadata.file_type().is_block_device().then(|| metadata.rdev())
}

/// Where a partition lies, as its table says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Its number, as the kernel counts: from 1, logical partitions from 5.
    pub number: u32,
    /// Its first byte.
    pub start: u64,
    /// Its length, bytes.
    pub length: u64,
}

/// The nodes of all partitions, made where they are missing. Where the kernel found none, be it that its scan failed
/// or that it does not know the table, it is told of those in `spans`.
pub(super) fn nodes(device: &Device, open: &File, spans: &[Span], notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let mut partitions = found(&device.folder());
    if partitions.is_empty() {
        // The driver keeps quiet when its scan failed; this one answers. That there is no table is no failure.
        if sys::partition::reread(open) == Err(rustix::io::Errno::BUSY) {
            notes.push("the partitions were not read: somebody has the device open".to_owned());
        }
        partitions = found(&device.folder());
    }
    if partitions.is_empty() && !spans.is_empty() {
        for span in spans {
            if let Err(error) = sys::partition::add(open, span.number, span.start, span.length) {
                let Span { number, start, length } = span;
                notes.push(format!("partition {number}, {length} bytes at {start}: {}", std::io::Error::from(error)));
            }
        }
        partitions = found(&device.folder());
    }
    for partition in &partitions {
        let there = dev_of(&partition.path);
        if there == Some(partition.dev) {
            continue;
        }
        if there.is_some() {
            // Of an earlier image: the numbers of partitions are given out as they come.
            let _ = std::fs::remove_file(&partition.path);
        }
        if let Err(error) = make_node(&partition.path, FileType::BlockDevice, partition.dev)
            && !wait_for(partition)?
        {
            return Err(error);
        }
    }
    Ok(partitions.into_iter().map(|partition| partition.path).collect())
}

/// Waits until somebody made the node.
fn wait_for(partition: &Partition) -> Result<bool> {
    detach::wait_until("/dev", inotify::WatchFlags::CREATE | inotify::WatchFlags::MOVED_TO, NODE_WAIT_MAX, || {
        dev_of(&partition.path) == Some(partition.dev)
    })
    .map_err(|error| Error::io("watching /dev", error))
}

/// Removes nodes in a container's `/dev` whose device is gone.
pub(super) fn remove_stale_nodes(partitions: &[Partition]) {
    for Partition { path, dev, .. } in partitions {
        let described = format!("/sys/dev/block/{}:{}", rustix::fs::major(*dev), rustix::fs::minor(*dev));
        if dev_of(path) == Some(*dev) && !Path::new(&described).exists() {
            let _ = std::fs::remove_file(path);
        }
    }
}
