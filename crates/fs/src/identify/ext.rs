//! ext2, ext3, ext4: the superblock at byte 1024 (Documentation/filesystems/ext4, "Super Block").

use block::Result;
use block::bytes::{has, le_u16, le_u32};

use super::{Flag, Identity, Probe, block_of_log, part, text, uuid};

const COMPAT_HAS_JOURNAL: u32 = 0x4;
const INCOMPAT_FILETYPE: u32 = 0x2;
const INCOMPAT_RECOVER: u32 = 0x4;
const INCOMPAT_JOURNAL_DEV: u32 = 0x8;
const INCOMPAT_META_BG: u32 = 0x10;
const INCOMPAT_64BIT: u32 = 0x80;
/// sparse_super, large_file, btree_dir: what ext2 and ext3 know.
const RO_COMPAT_OLD: u32 = 0x7;

pub(super) fn read(probe: &Probe<'_>) -> Result<Option<Identity>> {
    let sb = part(probe.head(1024), 0, 1024);
    if !has(sb, 0x38, &[0x53, 0xef]) {
        return Ok(None);
    }
    let field = |at| le_u32(sb, at).unwrap_or_default();
    let Some(block_bytes) = block_of_log(field(0x18).saturating_add(10)) else { return Ok(None) };
    let (compat, incompat, ro_compat) = (field(0x5c), field(0x60), field(0x64));
    let old =
        ro_compat & !RO_COMPAT_OLD == 0 && incompat & !(INCOMPAT_FILETYPE | INCOMPAT_RECOVER | INCOMPAT_META_BG) == 0;
    let journal_device = incompat & INCOMPAT_JOURNAL_DEV != 0;
    let name = match (compat & COMPAT_HAS_JOURNAL != 0, old) {
        _ if journal_device => "jbd",
        (true, true) => "ext3",
        (false, true) => "ext2",
        (_, false) => "ext4",
    };
    let high = |at| if incompat & INCOMPAT_64BIT == 0 { 0 } else { u64::from(field(at)) << 32 };
    let (blocks, free) = (u64::from(field(4)) | high(0x150), u64::from(field(0xc)) | high(0x158));
    let mut identity = Identity::new(name).space(block_bytes, blocks, Some(free));
    identity.version = Some(format!("{}.{}", field(0x4c), le_u16(sb, 0x3e).unwrap_or_default()));
    identity.uuid = uuid(part(sb, 0x68, 16));
    identity.label = text(part(sb, 0x78, 16));
    let state = le_u16(sb, 0x3a).unwrap_or_default();
    let recover = incompat & INCOMPAT_RECOVER != 0;
    for (flag, is_set) in [
        (Flag::JournalDevice, journal_device),
        (Flag::NeedsRecovery, recover && !journal_device),
        (Flag::Dirty, state & 1 == 0 && !journal_device),
        (Flag::Errors, state & 2 != 0),
    ] {
        if is_set {
            identity.flags.push(flag);
        }
    }
    Ok(Some(identity))
}
