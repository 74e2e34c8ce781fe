//! Swap, members of volumes, and file systems of other systems that are only recognised.

use block::Result;
use block::bytes::{be_u16, be_u32, has, le_u32, le_u64};

use super::{Flag, Identity, Probe, Usage, part, text, uuid};

/// Swap: the last ten bytes of the first page, whose size is that of the machine.
pub(super) fn swap(probe: &Probe<'_>) -> Result<Option<Identity>> {
    for page in [4096_u32, 8192, 16384, 32768, 65536] {
        let magic = probe.head((page as usize).saturating_sub(10));
        let suspended: [&[u8]; 4] = [b"S1SUSPEND", b"S2SUSPEND", b"ULSUSPEND", b"LINHIB0001"];
        let is_suspended = suspended.iter().any(|suspended| has(magic, 0, suspended));
        if !is_suspended && !has(magic, 0, b"SWAPSPACE2") && !has(magic, 0, b"SWAP-SPACE") {
            continue;
        }
        let mut identity = Identity::new(if is_suspended { "swsuspend" } else { "swap" });
        identity.usage = Usage::Swap;
        identity.block_bytes = Some(page);
        if has(magic, 0, b"SWAP-SPACE") {
            identity.version = Some("0".to_owned());
            return Ok(Some(identity));
        }
        let header = probe.head(1024);
        let word = if le_u32(header, 0) == Some(1) { le_u32 } else { be_u32 };
        if word(header, 0) == Some(1) {
            identity.version = Some("1".to_owned());
            let pages = u64::from(word(header, 4).unwrap_or_default()).saturating_add(1);
            identity = identity.space(page, pages, None);
            identity.uuid = uuid(part(header, 12, 16));
            identity.label = text(part(header, 28, 16));
        }
        return Ok(Some(identity));
    }
    Ok(None)
}

/// LVM2: a label in one of the first four sectors; the UUID has six groups.
pub(super) fn lvm2(probe: &Probe<'_>) -> Result<Option<Identity>> {
    for at in [0, 512, 1024, 1536] {
        let label = probe.head(at);
        if has(label, 0, b"LABELONE") && has(label, 24, b"LVM2 001") {
            let start = le_u32(label, 20).unwrap_or(32) as usize;
            let mut identity = Identity::new("LVM2_member");
            identity.usage = Usage::Member;
            identity.version = Some("LVM2 001".to_owned());
            for (at, letter) in text(part(label, start, 32)).chars().enumerate() {
                if matches!(at, 6 | 10 | 14 | 18 | 22 | 26) {
                    identity.uuid.push('-');
                }
                identity.uuid.push(letter);
            }
            identity.size_bytes = label.get(start..).and_then(|header| le_u64(header, 32));
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

/// Linux software RAID: versions 1.1 and 1.2 near the beginning, 1.0 and 0.90 near the end.
pub(super) fn linux_raid(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let magic = 0xa92b_4efc_u32.to_le_bytes();
    let size = probe.device.size();
    let at_1_0 = (size & !4095).checked_sub(8192);
    for (version, at) in [("1.1", Some(0)), ("1.2", Some(4096)), ("1.0", at_1_0)] {
        let Some(at) = at else { continue };
        let sb = probe.read(at, 256)?;
        // It says which sector it is in.
        if has(&sb, 0, &magic) && le_u32(&sb, 4) == Some(1) && le_u64(&sb, 144) == Some(at >> 9) {
            let mut identity = member("linux_raid_member", version);
            identity.uuid = uuid(part(&sb, 16, 16));
            identity.label = text(part(&sb, 32, 32));
            return Ok(Some(identity));
        }
    }
    if let Some(at) = (size & !0xffff).checked_sub(0x10000) {
        let sb = probe.read(at, 64)?;
        if has(&sb, 0, &magic) && le_u32(&sb, 4) == Some(0) {
            let mut identity = member("linux_raid_member", "0.90");
            let parts = [part(&sb, 20, 4), part(&sb, 52, 12)].concat();
            let swapped: Vec<u8> = parts.chunks_exact(4).flat_map(|word| word.iter().rev().copied()).collect();
            identity.uuid = uuid(&swapped);
            return Ok(Some(identity));
        }
    }
    Ok(None)
}

fn member(name: &'static str, version: &str) -> Identity {
    let mut identity = Identity::new(name);
    identity.usage = Usage::Member;
    identity.version = Some(version.to_owned());
    identity.flags.push(Flag::MultipleDevices);
    identity
}

/// ZFS: uberblocks in the second half of the first label; four of them must be there.
pub(super) fn zfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let ring = probe.read(128 << 10, 128 << 10)?;
    let magics = ring.chunks(1024).filter(|uberblock| le_u64(uberblock, 0) == Some(0x00ba_b10c)).count();
    Ok((magics >= 4).then(|| {
        let mut identity = Identity::new("zfs_member");
        identity.usage = Usage::Member;
        identity
    }))
}

/// bcache: at 4096.
pub(super) fn bcache(probe: &Probe<'_>) -> Result<Option<Identity>> {
    const MAGIC: [u8; 16] = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81_u128.to_be_bytes();
    let sb = probe.head(4096);
    if !has(sb, 24, &MAGIC) {
        return Ok(None);
    }
    let mut identity = Identity::new("bcache");
    identity.usage = Usage::Member;
    identity.uuid = uuid(part(sb, 40, 16));
    identity.label = text(part(sb, 72, 32));
    Ok(Some(identity))
}

/// HFS+ and HFSX: a volume header at 1024, big-endian (Apple TN1150).
pub(super) fn hfsplus(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let header = probe.head(1024);
    let version = match (be_u16(header, 0), be_u16(header, 2)) {
        (Some(0x482b), Some(4)) => "HFS+",
        (Some(0x4858), Some(5)) => "HFSX",
        _ => return Ok(None),
    };
    let Some(block_bytes) = be_u32(header, 40).filter(|bytes| bytes.is_power_of_two()) else { return Ok(None) };
    let blocks = u64::from(be_u32(header, 44).unwrap_or_default());
    let mut identity = Identity::new("hfsplus").space(block_bytes, blocks, be_u32(header, 48).map(u64::from));
    identity.version = Some(version.to_owned());
    if be_u32(header, 4).is_some_and(|attributes| attributes & 0x100 == 0) {
        identity.flags.push(Flag::Dirty);
    }
    Ok(Some(identity))
}

/// APFS: a container superblock at 0 (Apple File System Reference).
pub(super) fn apfs(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = probe.head(0);
    if !has(sb, 32, b"NXSB") {
        return Ok(None);
    }
    let Some(block_bytes) = le_u32(sb, 36).filter(|bytes| bytes.is_power_of_two()) else { return Ok(None) };
    let mut identity = Identity::new("apfs").space(block_bytes, le_u64(sb, 40).unwrap_or_default(), None);
    identity.uuid = uuid(part(sb, 72, 16));
    Ok(Some(identity))
}
