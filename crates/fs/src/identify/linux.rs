//! File systems of Linux with one superblock at a fixed place.

use block::Result;
use block::bytes::{be_u16, be_u32, be_u64, has, le_u16, le_u32, le_u64};

use super::{Flag, Identity, Probe, block_of_log, le_letters, part, text, utf16, uuid};

/// XFS: big-endian, at byte 0 (XFS Algorithms & Data Structures, "Superblocks").
pub(super) fn xfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(0);
    if !has(sb, 0, b"XFSB") {
        return Ok(None);
    }
    let blocks = be_u64(sb, 8).unwrap_or_default();
    let Some(block_bytes) = be_u32(sb, 4).filter(|bytes| bytes.is_power_of_two()) else { return Ok(None) };
    let mut identity = Identity::new("xfs").space(block_bytes, blocks, be_u64(sb, 144));
    identity.uuid = uuid(part(sb, 32, 16));
    identity.label = text(part(sb, 108, 12));
    identity.version = be_u16(sb, 100).map(|version| (version & 0xf).to_string());
    Ok(Some(identity))
}

/// btrfs: at 64 KiB.
pub(super) fn btrfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(0x10000);
    if !has(sb, 64, b"_BHRfS_M") {
        return Ok(None);
    }
    let mut identity = Identity::new("btrfs");
    identity.uuid = uuid(part(sb, 32, 16));
    identity.label = text(part(sb, 299, 256));
    identity.size_bytes = le_u64(sb, 112);
    identity.used_bytes = le_u64(sb, 120);
    identity.block_bytes = le_u32(sb, 144);
    if le_u64(sb, 136).is_some_and(|devices| devices > 1) {
        identity.flags.push(Flag::MultipleDevices);
    }
    Ok(Some(identity))
}

/// F2FS: at 1024, and a copy one block later.
pub(super) fn f2fs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let magic = 0xf2f5_2010_u32.to_le_bytes();
    let Some(sb) = [1024, 5120].into_iter().map(|at| probe.head(at)).find(|sb| has(sb, 0, &magic)) else {
        return Ok(None);
    };
    let Some(block_bytes) = le_u32(sb, 16).and_then(block_of_log) else { return Ok(None) };
    let mut identity = Identity::new("f2fs").space(block_bytes, le_u64(sb, 36).unwrap_or_default(), None);
    identity.version = le_u16(sb, 4).zip(le_u16(sb, 6)).map(|(major, minor)| format!("{major}.{minor}"));
    identity.uuid = uuid(part(sb, 108, 16));
    identity.label = utf16(le_letters(part(sb, 124, 1024)));
    Ok(Some(identity))
}

/// EROFS: at 1024 (Documentation/filesystems/erofs).
pub(super) fn erofs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(1024);
    if !has(sb, 0, &0xe0f5_e1e2_u32.to_le_bytes()) {
        return Ok(None);
    }
    let Some(block_bytes) = sb.get(12).and_then(|log| block_of_log(u32::from(*log))) else { return Ok(None) };
    let mut identity = Identity::new("erofs").space(block_bytes, u64::from(le_u32(sb, 36).unwrap_or_default()), None);
    identity.uuid = uuid(part(sb, 48, 16));
    identity.label = text(part(sb, 64, 16));
    identity.used_bytes = identity.size_bytes;
    Ok(Some(identity))
}

/// SquashFS: at 0; up to version 3 in the byte order of the machine that made it.
pub(super) fn squashfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(0);
    let big = has(sb, 0, b"sqsh");
    if !big && !has(sb, 0, b"hsqs") {
        return Ok(None);
    }
    let half = if big { be_u16 } else { le_u16 };
    let (Some(major), Some(minor)) = (half(sb, 28), half(sb, 30)) else { return Ok(None) };
    let mut identity = Identity::new(if major < 4 { "squashfs3" } else { "squashfs" });
    identity.version = Some(format!("{major}.{minor}"));
    if major >= 4 {
        let compression = match le_u16(sb, 20) {
            Some(1) => ", gzip",
            Some(2) => ", lzma",
            Some(3) => ", lzo",
            Some(4) => ", xz",
            Some(5) => ", lz4",
            Some(6) => ", zstd",
            _ => "",
        };
        identity.version = Some(format!("{major}.{minor}{compression}"));
        identity.block_bytes = le_u32(sb, 12);
        identity.size_bytes = le_u64(sb, 40);
        identity.used_bytes = identity.size_bytes;
    }
    if big {
        identity.flags.push(Flag::BigEndian);
    }
    Ok(Some(identity))
}

/// cramfs: at 0, or at 512 behind boot code; either byte order.
pub(super) fn cramfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let magic = 0x28cd_3d45_u32;
    for sb in [probe.head(0), probe.head(512)] {
        let big = has(sb, 0, &magic.to_be_bytes());
        if (big || has(sb, 0, &magic.to_le_bytes())) && has(sb, 16, b"Compressed ROMFS") {
            let mut identity = Identity::new("cramfs");
            identity.size_bytes = if big { be_u32(sb, 4) } else { le_u32(sb, 4) }.map(u64::from);
            identity.used_bytes = identity.size_bytes;
            identity.label = text(part(sb, 48, 16));
            if big {
                identity.flags.push(Flag::BigEndian);
            }
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// romfs: at 0 (Documentation/filesystems/romfs).
pub(super) fn romfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(0);
    if !has(sb, 0, b"-rom1fs-") {
        return Ok(None);
    }
    let mut identity = Identity::new("romfs");
    identity.size_bytes = be_u32(sb, 8).map(u64::from);
    identity.used_bytes = identity.size_bytes;
    identity.label = text(part(sb, 16, 64));
    Ok(Some(identity))
}

/// bcachefs: at 4096.
pub(super) fn bcachefs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    const MAGIC: [u8; 16] = 0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7ef_u128.to_be_bytes();
    let sb = probe.head(4096);
    if !has(sb, 24, &MAGIC) {
        return Ok(None);
    }
    let mut identity = Identity::new("bcachefs");
    identity.uuid = uuid(part(sb, 56, 16));
    identity.label = text(part(sb, 72, 32));
    identity.version = le_u16(sb, 16).map(|version| version.to_string());
    if sb.get(122).is_some_and(|devices| *devices > 1) {
        identity.flags.push(Flag::MultipleDevices);
    }
    Ok(Some(identity))
}
