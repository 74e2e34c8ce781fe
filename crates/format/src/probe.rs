//! What container a device's bytes are: an image format, an encrypted volume, a compressed file, or none of them.
//!
//! Only the main facts of the header are read. What none of the marks is on is raw: its bytes are the disk's bytes, and
//! [`crate::partition`] and file systems say more.

use block::bytes::{be_u16, be_u32, be_u64, has, le_u16, le_u32, le_u64, read_up_to};
use block::{ReadAt, Result};
use serde::Serialize;

use crate::partition::guid;

/// A container and what its header says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Container {
    /// Which one.
    pub format: Format,
    /// Its version.
    pub version: Option<u32>,
    /// Size of the disk inside, bytes.
    pub virtual_bytes: Option<u64>,
    /// Bytes of a cluster, a block or a grain.
    pub cluster_bytes: Option<u64>,
    /// The UUID of the container.
    pub uuid: Option<String>,
    /// The label of the container.
    pub label: Option<String>,
    /// The file that lies beneath, as named in the image: never opened because of that alone.
    pub backing_file: Option<String>,
    /// The variant: `dynamic`, `aes-xts-plain64`, `zlib`.
    pub variant: Option<String>,
}

/// The kinds of container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU copy on write, version 2 and 3 (and 1).
    Qcow2,
    /// QEMU enhanced disk.
    Qed,
    /// Virtual PC.
    Vhd,
    /// Hyper-V.
    Vhdx,
    /// VMware.
    Vmdk,
    /// VirtualBox.
    Vdi,
    /// Parallels.
    Parallels,
    /// Linux unified key setup.
    Luks,
    /// BitLocker.
    BitLocker,
    /// Compressed as a whole.
    Gzip,
    /// Compressed as a whole.
    Xz,
    /// Compressed as a whole.
    Zstd,
    /// Compressed as a whole.
    Bzip2,
    /// Compressed as a whole.
    Lz4,
}

impl Format {
    /// Its name: qemu-img's where that has one.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Qcow2 => "qcow2",
            Self::Qed => "qed",
            Self::Vhd => "vhd",
            Self::Vhdx => "vhdx",
            Self::Vmdk => "vmdk",
            Self::Vdi => "vdi",
            Self::Parallels => "parallels",
            Self::Luks => "luks",
            Self::BitLocker => "bitlocker",
            Self::Gzip => "gzip",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
            Self::Lz4 => "lz4",
        }
    }

    /// Whether it is a file compressed as a whole.
    pub fn is_compressed(self) -> bool {
        matches!(self, Self::Gzip | Self::Xz | Self::Zstd | Self::Bzip2 | Self::Lz4)
    }
}

/// The longest name of a backing file: qcow2's own limit.
const BACKING_FILE_BYTES_MAX: usize = 1023;
/// Enough for all headers, and for the JSON of LUKS2 (12 KiB where it is not made larger).
const HEAD_BYTES: usize = 16 << 10;
const VHDX_REGION_AT: u64 = 192 << 10;

impl Container {
    fn new(format: Format) -> Self {
        Self {
            format,
            version: None,
            virtual_bytes: None,
            cluster_bytes: None,
            uuid: None,
            label: None,
            backing_file: None,
            variant: None,
        }
    }
}

/// What container a device is.
///
/// # Errors
/// The failure of the device.
pub fn probe(device: &dyn ReadAt) -> Result<Container> {
    let head = read_up_to(device, 0, HEAD_BYTES)?;
    if has(&head, 0, b"vhdxfile") {
        return vhdx(device);
    }
    if let Some(found) = from_head(&head) {
        return Ok(found);
    }
    // A fixed VHD has nothing but a footer, in the last sector.
    if let Some(at) = device.size().checked_sub(512) {
        let footer = read_up_to(device, at, 512)?;
        if is_vhd(&footer) {
            return Ok(vhd(&footer));
        }
    }
    let raw = Container { virtual_bytes: Some(device.size()), ..Container::new(Format::Raw) };
    Ok(raw)
}

fn from_head(head: &[u8]) -> Option<Container> {
    let compressed: [(Format, &[u8]); 5] = [
        (Format::Gzip, &[0x1f, 0x8b, 8]),
        (Format::Xz, b"\xfd7zXZ\0"),
        (Format::Zstd, &[0x28, 0xb5, 0x2f, 0xfd]),
        (Format::Lz4, &[0x04, 0x22, 0x4d, 0x18]),
        (Format::Lz4, &[0x02, 0x21, 0x4c, 0x18]),
    ];
    if let Some((format, _)) = compressed.iter().find(|(_, magic)| has(head, 0, magic)) {
        return Some(Container::new(*format));
    }
    let level = head.get(3).copied().unwrap_or_default();
    let block = [&b"1AY&SY"[..], b"\x17rE8P\x90"].iter().any(|magic| has(head, 4, magic));
    if has(head, 0, b"BZh") && level.is_ascii_digit() && block {
        return Some(Container::new(Format::Bzip2));
    }
    if has(head, 0, b"QFI\xfb") {
        return Some(qcow2(head));
    }
    if has(head, 0, b"QED\0") {
        let mut found = Container::new(Format::Qed);
        found.cluster_bytes = le_u32(head, 4).map(u64::from);
        found.virtual_bytes = le_u64(head, 48);
        return Some(found);
    }
    if has(head, 0, b"KDMV") || has(head, 0, b"COWD") || has(head, 0, b"# Disk DescriptorFile") {
        return Some(vmdk(head));
    }
    if le_u32(head, 64) == Some(0xbeda_107f) {
        return Some(vdi(head));
    }
    if has(head, 0, b"WithoutFreeSpace") || has(head, 0, b"WithouFreSpacExt") {
        let extended = has(head, 0, b"WithouFreSpacExt");
        let mut found = Container::new(Format::Parallels);
        found.version = le_u32(head, 16);
        found.cluster_bytes = le_u32(head, 28).map(|sectors| u64::from(sectors).saturating_mul(512));
        let sectors = if extended { le_u64(head, 36) } else { le_u32(head, 36).map(u64::from) };
        found.virtual_bytes = sectors.and_then(|sectors| sectors.checked_mul(512));
        return Some(found);
    }
    if is_vhd(head) {
        return Some(vhd(head));
    }
    if has(head, 0, b"LUKS\xba\xbe") {
        return Some(luks(head));
    }
    has(head, 3, b"-FVE-FS-").then(|| Container::new(Format::BitLocker))
}

/// qcow2 (QEMU's docs/interop/qcow2.txt): big-endian.
fn qcow2(head: &[u8]) -> Container {
    let mut found = Container::new(Format::Qcow2);
    found.version = be_u32(head, 4);
    let (at, len) = (be_u64(head, 8).unwrap_or_default(), be_u32(head, 16).unwrap_or_default() as usize);
    found.backing_file = usize::try_from(at)
        .ok()
        .filter(|at| *at > 0 && (1..=BACKING_FILE_BYTES_MAX).contains(&len))
        .and_then(|at| head.get(at..)?.get(..len))
        .map(|name| String::from_utf8_lossy(name).into_owned());
    if found.version == Some(1) {
        // Size before cluster_bits, the other way round than later.
        found.virtual_bytes = be_u64(head, 24);
        found.cluster_bytes = head.get(32).and_then(|bits| 1_u64.checked_shl(u32::from(*bits)));
        return found;
    }
    found.cluster_bytes = be_u32(head, 20).and_then(|bits| 1_u64.checked_shl(bits)).filter(|bytes| *bytes <= 2 << 20);
    found.virtual_bytes = be_u64(head, 24);
    found.variant = match be_u32(head, 32) {
        Some(1) => Some("encrypted with AES".to_owned()),
        Some(2) => Some("encrypted with LUKS".to_owned()),
        _ => None,
    };
    found
}

/// VMDK: a sparse extent, or a text that names extents.
fn vmdk(head: &[u8]) -> Container {
    let mut found = Container::new(Format::Vmdk);
    let sectors = |sectors: Option<u64>| sectors.and_then(|sectors| sectors.checked_mul(512));
    let mut description = head;
    if has(head, 0, b"KDMV") {
        found.version = le_u32(head, 4);
        found.virtual_bytes = sectors(le_u64(head, 12));
        found.cluster_bytes = sectors(le_u64(head, 20));
        let at = sectors(le_u64(head, 28)).and_then(|at| usize::try_from(at).ok());
        description = at.and_then(|at| head.get(at..)).unwrap_or_default();
    } else if has(head, 0, b"COWD") {
        found.version = le_u32(head, 4);
        found.virtual_bytes = le_u32(head, 12).and_then(|sectors| u64::from(sectors).checked_mul(512));
        found.cluster_bytes = le_u32(head, 16).and_then(|sectors| u64::from(sectors).checked_mul(512));
    }
    let description = String::from_utf8_lossy(description);
    let value = |key: &str| {
        let line = description.lines().take(64).find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches(['"', '\0', ' ']).to_owned())
    };
    found.variant = value("createType");
    found.backing_file = value("parentFileNameHint");
    found
}

/// VDI: a text, then a little-endian header.
fn vdi(head: &[u8]) -> Container {
    let mut found = Container::new(Format::Vdi);
    found.version = le_u32(head, 68).map(|version| version >> 16);
    found.variant = match le_u32(head, 76) {
        Some(1) => Some("dynamic".to_owned()),
        Some(2) => Some("static".to_owned()),
        Some(3) => Some("undo".to_owned()),
        Some(4) => Some("differencing".to_owned()),
        _ => None,
    };
    found.virtual_bytes = le_u64(head, 368);
    found.cluster_bytes = le_u32(head, 376).map(u64::from);
    found.uuid = head.get(392..).and_then(guid::text);
    found
}

/// Whether these are a VHD's footer: its mark and its checksum.
fn is_vhd(footer: &[u8]) -> bool {
    let Some(footer) = footer.get(..512) else { return false };
    let stored = be_u32(footer, 64).unwrap_or_default();
    let own = footer.iter().skip(64).take(4).fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    let sum = footer.iter().fold(0_u32, |sum, byte| sum.wrapping_add(u32::from(*byte)));
    has(footer, 0, b"conectix") && !sum.wrapping_sub(own) == stored
}

/// VHD (Microsoft's specification 1.0): big-endian.
fn vhd(footer: &[u8]) -> Container {
    let mut found = Container::new(Format::Vhd);
    found.version = be_u16(footer, 12).map(u32::from);
    found.virtual_bytes = be_u64(footer, 48);
    found.variant = match be_u32(footer, 60) {
        Some(2) => Some("fixed".to_owned()),
        Some(3) => Some("dynamic".to_owned()),
        Some(4) => Some("differencing".to_owned()),
        _ => None,
    };
    let id = footer.get(68..84).unwrap_or_default();
    found.uuid = (!id.is_empty()).then(|| uuid_text(id));
    found
}

/// VHDX (MS-VHDX): a region table leads to the metadata table, which leads to the size of the disk.
fn vhdx(device: &dyn ReadAt) -> Result<Container> {
    const METADATA_REGION: &str = "8b7ca206-4790-4b9a-b8fe-575f050f886e";
    const FILE_PARAMETERS: &str = "caa16737-fa36-4d43-b3b6-33f0aa44e76b";
    const DISK_SIZE: &str = "2fa54224-cd1b-4876-b211-5dbed83bf4b8";
    const DISK_ID: &str = "beca12ab-b2e6-4523-93ef-c309e000c746";
    let mut found = Container::new(Format::Vhdx);
    let regions = read_up_to(device, VHDX_REGION_AT, 64 << 10)?;
    let count = le_u32(&regions, 8).unwrap_or_default().min(2047) as usize;
    let is_table = has(&regions, 0, b"regi");
    let entry = regions.get(16..).unwrap_or_default().chunks_exact(32).take(if is_table { count } else { 0 });
    let mut metadata = entry.filter(|entry| guid::text(entry).as_deref() == Some(METADATA_REGION));
    let Some(at) = metadata.next().and_then(|entry| le_u64(entry, 16)) else { return Ok(found) };
    let table = read_up_to(device, at, 64 << 10)?;
    let count = le_u16(&table, 10).unwrap_or_default().min(2047);
    let is_table = has(&table, 0, b"metadata");
    let items = table.get(32..).unwrap_or_default().chunks_exact(32);
    for item in items.take(if is_table { usize::from(count) } else { 0 }) {
        let id = guid::text(item).unwrap_or_default();
        if ![FILE_PARAMETERS, DISK_SIZE, DISK_ID].contains(&id.as_str()) {
            continue;
        }
        let value = read_up_to(device, at.saturating_add(u64::from(le_u32(item, 16).unwrap_or_default())), 16)?;
        match id.as_str() {
            DISK_SIZE => found.virtual_bytes = le_u64(&value, 0),
            DISK_ID => found.uuid = guid::text(&value),
            _ => {
                found.cluster_bytes = le_u32(&value, 0).map(u64::from);
                let flags = le_u32(&value, 4).unwrap_or_default();
                let variant = match flags & 3 {
                    0 => "dynamic",
                    1 => "fixed",
                    _ => "differencing",
                };
                found.variant = Some(variant.to_owned());
            }
        }
    }
    Ok(found)
}

/// LUKS 1 and 2 (cryptsetup's on-disk format specifications): big-endian, texts of fixed length.
fn luks(head: &[u8]) -> Container {
    let field = |at: usize, len: usize| {
        let bytes = head.get(at..).and_then(|rest| rest.get(..len)).unwrap_or_default();
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
        (!text.is_empty()).then_some(text)
    };
    let mut found = Container::new(Format::Luks);
    found.version = be_u16(head, 6).map(u32::from);
    found.uuid = field(168, 40);
    if found.version == Some(1) {
        let parts = [field(8, 32), field(40, 32)];
        found.variant = Some(parts.into_iter().flatten().collect::<Vec<_>>().join("-"));
    } else {
        found.label = field(24, 48);
        // The cipher stands in the JSON behind the header; only this one word of it is looked for.
        let json = String::from_utf8_lossy(head.get(4096..).unwrap_or_default()).into_owned();
        found.variant = luks2_cipher(&json);
    }
    found
}

/// The `"encryption"` of the first segment: after `"segments"`, as a key slot's area has one of its own.
fn luks2_cipher(json: &str) -> Option<String> {
    let segments = json.split_once("\"segments\"")?.1;
    let value = segments.split_once("\"encryption\"")?.1.split('"').nth(1)?;
    Some(value.to_owned())
}

/// The text of a UUID of big-endian bytes.
pub(crate) fn uuid_text(bytes: &[u8]) -> String {
    let mut text = String::new();
    for (at, byte) in bytes.iter().enumerate() {
        if matches!(at, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// For fuzzing: what container `data` is.
pub fn fuzz(data: &[u8]) {
    let device = block::bytes::Bytes(data);
    let _ = probe(&device);
    let _ = vhdx(&device);
}
