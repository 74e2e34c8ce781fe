//! What file system a device holds, by its first and a few more bytes: type, label, UUID, sizes, state.
//!
//! Types have the names, labels and UUIDs the form that `blkid` gives them. Nothing is opened and no tree is walked: each
//! kind reads a fixed number of small pieces. What a superblock claims is passed on as it is, and not relied upon.

use block::bytes::read_up_to;
use block::{ReadAt, Result};
use serde::Serialize;

mod ext;
mod fat;
mod iso9660;
mod linux;
mod ntfs;
mod udf;
mod volume;

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Identity {
    /// The type as blkid has it: `ext4`, `vfat`, `LVM2_member`.
    #[serde(rename = "type")]
    pub name: &'static str,
    /// What it is for.
    pub usage: Usage,
    /// The version, where there is more than one: `FAT32`, `4.0`.
    pub version: Option<String>,
    /// The label; empty where it has none.
    pub label: String,
    /// The UUID or serial number; empty where it has none.
    pub uuid: String,
    /// How many bytes it says that it is.
    pub size_bytes: Option<u64>,
    /// Bytes of its blocks (sectors, clusters: what it counts its size in).
    pub block_bytes: Option<u32>,
    /// How many bytes of it are in use, where the superblock says so.
    pub used_bytes: Option<u64>,
    /// State and features worth knowing.
    pub flags: Vec<Flag>,
}

/// What a found thing is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Usage {
    /// A tree of files.
    Filesystem,
    /// A part of a volume that other devices belong to as well.
    Member,
    /// Memory that was paged out.
    Swap,
}

/// State and features.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Flag {
    /// It was not unmounted.
    Dirty,
    /// Its journal holds what must be replayed.
    NeedsRecovery,
    /// It knows of errors in itself.
    Errors,
    /// POSIX names, modes and links (ISO 9660).
    RockRidge,
    /// Names of Unicode (ISO 9660).
    Joliet,
    /// It boots (ISO 9660).
    ElTorito,
    /// It is ISO 9660 and UDF at one time.
    UdfBridge,
    /// It is a journal of another file system and no tree of files.
    JournalDevice,
    /// It needs other devices to be whole.
    MultipleDevices,
    /// Its numbers are big-endian.
    BigEndian,
}

impl Identity {
    fn new(name: &'static str) -> Self {
        Self {
            name,
            usage: Usage::Filesystem,
            version: None,
            label: String::new(),
            uuid: String::new(),
            size_bytes: None,
            block_bytes: None,
            used_bytes: None,
            flags: Vec::new(),
        }
    }

    /// Blocks of `block_bytes` in all, of which some are free.
    fn space(mut self, block_bytes: u32, blocks: u64, free: Option<u64>) -> Self {
        let bytes = |blocks: u64| blocks.checked_mul(u64::from(block_bytes));
        self.block_bytes = Some(block_bytes);
        self.size_bytes = bytes(blocks);
        self.used_bytes = free.and_then(|free| blocks.checked_sub(free)).and_then(bytes);
        self
    }
}

/// The first bytes of a device, read once, and the device for the rest.
struct Probe<'a> {
    device: &'a dyn ReadAt,
    head: Vec<u8>,
}

/// Up to the end of the superblock of btrfs, the furthest of those near the beginning.
const HEAD_BYTES: usize = 0x11000;

impl Probe<'_> {
    /// The bytes at `offset`, or fewer where the device ends.
    fn read(&self, offset: u64, len: usize) -> Result<Vec<u8>> {
        read_up_to(self.device, offset, len)
    }

    /// The bytes of the head from `at` on.
    fn head(&self, at: usize) -> &[u8] {
        self.head.get(at..).unwrap_or_default()
    }
}

type Reader = fn(&Probe<'_>) -> Result<Option<Identity>>;

/// In this order: members of volumes first, as what they hold may begin with a superblock of its own; then what has
/// strong marks; FAT, whose marks are weak, last.
const READERS: &[Reader] = &[
    volume::linux_raid,
    volume::lvm2,
    volume::zfs,
    volume::bcache,
    volume::swap,
    ext::read,
    linux::xfs,
    linux::btrfs,
    linux::f2fs,
    linux::erofs,
    linux::squashfs,
    linux::cramfs,
    linux::romfs,
    linux::bcachefs,
    ntfs::read,
    fat::exfat,
    iso9660::read,
    udf::read,
    volume::hfsplus,
    volume::apfs,
    fat::vfat,
];

/// What file system, or part of one, a device holds; `None` for one that is not known.
///
/// # Errors
/// The failure of the device.
pub fn identify(device: &dyn ReadAt) -> Result<Option<Identity>> {
    let probe = Probe { device, head: read_up_to(device, 0, HEAD_BYTES)? };
    for reader in READERS {
        if let Some(identity) = reader(&probe)? {
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// For fuzzing: asks each reader of its own, as the first that says yes hides the others.
pub fn fuzz(data: &[u8]) {
    let device = block::bytes::Bytes(data);
    if let Ok(head) = read_up_to(&device, 0, HEAD_BYTES) {
        let probe = Probe { device: &device, head };
        for reader in READERS {
            let _ = reader(&probe);
        }
    }
}

/// Text up to the first NUL, without blanks at its end; what is no UTF-8 is replaced.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim_end().to_owned()
}

/// Text of UTF-16 letters up to the first NUL, without blanks at its end.
fn utf16(letters: impl Iterator<Item = u16>) -> String {
    let letters = char::decode_utf16(letters.take_while(|letter| *letter != 0));
    let text: String = letters.map(|letter| letter.unwrap_or(char::REPLACEMENT_CHARACTER)).collect();
    text.trim_end().to_owned()
}

/// The little-endian 16-bit letters of `bytes`.
fn le_letters(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).filter_map(|pair| block::bytes::le_u16(pair, 0))
}

/// The big-endian 16-bit letters of `bytes`.
fn be_letters(bytes: &[u8]) -> impl Iterator<Item = u16> {
    bytes.chunks_exact(2).filter_map(|pair| block::bytes::be_u16(pair, 0))
}

/// The UUID of 16 bytes; empty where they are all zero or not there.
fn uuid(bytes: &[u8]) -> String {
    let bytes = bytes.get(..16).unwrap_or_default();
    let mut text = String::new();
    if bytes.iter().any(|byte| *byte != 0) {
        for (at, byte) in bytes.iter().enumerate() {
            if matches!(at, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
    }
    text
}

/// Part of a slice; empty where it is not there.
fn part(bytes: &[u8], at: usize, len: usize) -> &[u8] {
    bytes.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default()
}

/// Two to that power, where it is a plausible size of a block: 512 bytes to 64 KiB (and `None` otherwise).
fn block_of_log(log: u32) -> Option<u32> {
    1_u32.checked_shl(log).filter(|bytes| (512..=1 << 24).contains(bytes))
}
