//! New file systems that hold a tree.
//!
//! The tree is read first ([`Tree`]), sorted, and its content copied from where it is while the file system is written in
//! one go. There is no clock and no randomness in it: the same tree and the same [`Make`] give the same bytes.
//!
//! What each can hold:
//!
//! | | modes, owners | links | devices | attributes | times | holes |
//! |---|---|---|---|---|---|---|
//! | FAT | read-only or not | left out; a hard link becomes a copy | left out | – | 2 s | – |
//! | exFAT | read-only or not | left out; a hard link becomes a copy | left out | – | 10 ms | – |
//! | ext4 | yes | yes | yes | yes, up to a block of them | 1 ns | yes |
//! | ISO 9660 | yes | yes | yes | user, trusted, security | 1 s, 1900 to 2155 | no |
//! | squashfs | yes | yes | yes | user, trusted, security | 1 s, 1970 to 2106 | blocks of zeroes |
//! | erofs | yes | yes | yes | yes | 1 ns | yes |

#![allow(
    clippy::arithmetic_side_effects,
    reason = "all that is added up here was counted and limited when the tree was read: tree::BYTES_MAX, FILES_MAX"
)]

use std::sync::Arc;

use block::{BlockDevice, Result};

use crate::progress::Progress;
use crate::{FileSystem, Time, fat};

mod content;
mod erofs;
mod ext4;
mod fat_tree;
mod iso9660;
mod squashfs;
pub mod tree;

pub use tree::Tree;

/// Which file system is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// FAT12, FAT16 or FAT32, as the size demands.
    Fat,
    /// FAT32.
    Fat32,
    /// exFAT.
    ExFat,
    /// ext4.
    Ext4,
    /// erofs.
    Erofs,
    /// ISO 9660 with Rock Ridge and Joliet.
    Iso9660,
    /// squashfs 4.0.
    SquashFs,
}

impl Type {
    /// The names that people give them.
    pub const NAMES: &[&str] = &["ext4", "fat", "fat32", "exfat", "iso", "squashfs", "erofs"];

    /// The one of that name.
    pub fn of_name(name: &str) -> Option<Self> {
        Some(match name {
            "ext4" => Self::Ext4,
            "erofs" => Self::Erofs,
            "fat" | "vfat" => Self::Fat,
            "fat32" => Self::Fat32,
            "exfat" => Self::ExFat,
            "iso" | "iso9660" => Self::Iso9660,
            "squashfs" => Self::SquashFs,
            _ => return None,
        })
    }

    /// What a partition that holds one is called: its type in an MBR, and in a GPT.
    pub fn partition_types(self) -> (u8, &'static str) {
        match self {
            // As Windows has it: FAT with the addresses of large disks; NTFS, and what came after.
            Self::Fat | Self::Fat32 => (0x0c, "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"),
            Self::ExFat => (0x07, "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7"),
            Self::Ext4 | Self::Iso9660 | Self::SquashFs | Self::Erofs => (0x83, "0fc63daf-8483-4772-8e79-3d69d8477de4"),
        }
    }

    /// Whether a size can be given: others are as large as what they hold.
    pub fn has_size(self) -> bool {
        match self {
            Self::Ext4 | Self::Fat | Self::Fat32 | Self::ExFat => true,
            Self::Iso9660 | Self::SquashFs | Self::Erofs => false,
        }
    }
}

/// What is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Make {
    /// Which file system.
    pub file_system: Type,
    /// Its label; empty for none.
    pub label: String,
    /// By which it is found again: its UUID, or a part of it as a serial number.
    pub id: u128,
    /// When it is made.
    pub time: Time,
    /// Bytes before it on the disk, where it is in a partition.
    pub start_bytes: u64,
}

/// What came of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Made {
    /// Bytes of the file system from its beginning on, where it is not as large as the device.
    pub bytes: u64,
    /// Files that it could not hold; each was told to the progress.
    pub left_out: u64,
}

impl Make {
    /// The size of the device that the tree needs, bytes. Of a type without a size of its own ([`Type::has_size`]) it is
    /// the most that it may take, and [`Made::bytes`] says what it took.
    ///
    /// # Errors
    /// [`block::Kind::Invalid`] for a label that it cannot have; `Limit` for a tree that it cannot hold.
    pub fn size(&self, tree: &Tree) -> Result<u64> {
        match self.file_system {
            Type::Fat | Type::Fat32 | Type::ExFat => fat_tree::size(&self.format(tree), tree),
            Type::Ext4 => ext4::size(self, tree),
            Type::Erofs => erofs::size(self, tree),
            Type::Iso9660 => iso9660::size(self, tree),
            Type::SquashFs => squashfs::size(tree),
        }
    }

    /// Makes it on `device`, whose bytes are all zero, with the content that `source` (from which the tree was read) has.
    ///
    /// # Errors
    /// Those of [`Make::size`]; `NoSpace` where the device is too small; the failure of the device or of `source`,
    /// and that a file of it has changed since.
    pub fn write(
        &self,
        tree: &Tree,
        source: &dyn FileSystem,
        device: &Arc<dyn BlockDevice>,
        progress: &dyn Progress,
    ) -> Result<Made> {
        match self.file_system {
            Type::Fat | Type::Fat32 | Type::ExFat => {
                fat_tree::write(&self.format(tree), tree, source, device, progress)
            }
            Type::Ext4 => ext4::write(self, tree, source, &**device, progress),
            Type::Erofs => erofs::write(self, tree, source, &**device, progress),
            Type::Iso9660 => iso9660::write(self, tree, source, &**device, progress),
            Type::SquashFs => squashfs::write(self, tree, source, &**device, progress),
        }
    }

    fn format(&self, tree: &Tree) -> fat::Format {
        let kind = match self.file_system {
            Type::ExFat => fat::Type::ExFat,
            Type::Fat if fat_tree::fits_fixed_root(tree) => fat::Type::Fat,
            _ => fat::Type::Fat32,
        };
        let serial = (self.id ^ self.id >> 32 ^ self.id >> 64 ^ self.id >> 96) as u32;
        fat::Format {
            file_system: kind,
            label: self.label.clone(),
            serial,
            start_bytes: self.start_bytes,
            time: self.time,
        }
    }
}
