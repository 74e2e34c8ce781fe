//! The journal (jbd2): transactions that were committed and not yet written to their places, big-endian.
//!
//! ```text
//! block 0:     0 magic 0xC03B3998   4 type 3 or 4   12 blocksize   16 maxlen   20 first   24 sequence   28 start
//!             36 feature_compat    40 incompat     48 uuid        80 checksum_type   84 num_fc_blks   252 checksum
//! then:       0 magic   4 type     8 sequence
//!   1 descriptor  12 tags: where each of the blocks that follow belongs
//!   5 revoke      12 bytes in use, 16 block numbers that transactions up to this one do not write
//!   2 commit      12 chksum_type   13 chksum_size   16 chksum   48 commit_sec   56 commit_nsec
//! ```
//! The log wraps from `maxlen` (less the fast commits') to `first`. A transaction without its commit never happened.
//!
//! Specification: Documentation/filesystems/ext4/journal.rst of the kernel.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};

use block::{Error, Kind, Result};

use super::checksum::{crc32_be, crc32c};
use super::field::{array, be16, be32, be64, byte, join, part};
use super::inode::InodeRecord;
use super::mapping::{Place, Run};
use super::volume::{JOURNAL_MAGIC, Replayed};
use super::{Corrupt, Ext4};
use crate::FileType;

/// The longest journal, blocks: what mke2fs makes at most.
const JOURNAL_BLOCKS_MAX: u32 = 10_240_000;
/// How many blocks and revocations are remembered at most: about 200 MiB of them.
const LOGGED_MAX: usize = 4 << 20;
/// How many blocks fast commits have where the journal does not say.
const FAST_COMMIT_BLOCKS: u32 = 256;

mod incompat {
    pub(crate) const REVOKE: u32 = 0x1;
    pub(crate) const BITS_64: u32 = 0x2;
    pub(crate) const ASYNC_COMMIT: u32 = 0x4;
    pub(crate) const CSUM_V2: u32 = 0x8;
    pub(crate) const CSUM_V3: u32 = 0x10;
    pub(crate) const FAST_COMMIT: u32 = 0x20;
    pub(crate) const READ: u32 = REVOKE | BITS_64 | ASYNC_COMMIT | CSUM_V2 | CSUM_V3 | FAST_COMMIT;
}
/// `feature_compat`: commits hold the checksum of their whole transaction.
const COMPAT_CHECKSUM: u32 = 0x1;

mod tag {
    pub(crate) const ESCAPED: u32 = 1;
    pub(crate) const SAME_UUID: u32 = 2;
    pub(crate) const LAST: u32 = 8;
}

/// The journal of a file system, its superblock read.
pub(super) struct Journal<'a> {
    fs: &'a Ext4,
    inode: &'a InodeRecord,
    known: RefCell<Option<(u64, Run)>>, // the run of the journal's blocks that was asked for last
    first: u32,
    /// Behind the last block of the log.
    last: u32,
    /// Behind the last block of fast commits, which follow the log.
    end: u32,
    start: u32,
    sequence: u32,
    compat: u32,
    incompat: u32,
    seed: u32,
}

/// What a journal holds.
pub(super) struct Log {
    /// The newest content of each block of the file system that the journal has.
    pub(super) replayed: BTreeMap<u64, Replayed>,
    /// The number that the next transaction would have, and that valid fast commits have.
    pub(super) next_sequence: u32,
}

/// A block in the journal.
#[derive(Clone, Copy)]
struct Logged {
    target: u64,
    block: u64, // of the device
    sequence: u32,
    escaped: bool,
    checksum: u32,
}

/// Whether transaction `left` is later than `right`: numbers wrap.
fn is_later(left: u32, right: u32) -> bool {
    left.wrapping_sub(right).cast_signed() > 0
}

impl<'a> Journal<'a> {
    /// Reads the superblock of the journal in `inode`; `None` where it is empty.
    pub(super) fn open(fs: &'a Ext4, inode: &'a InodeRecord) -> Result<Option<Self>> {
        if inode.file_type()? != FileType::Regular {
            return Err(Corrupt::InodeMode { inode: inode.number, mode: inode.mode }.into());
        }
        let mut bytes = [0; 1024];
        if fs.read_content(inode, &mut bytes, 0)? < bytes.len() || part(&bytes, 0, 4)? != JOURNAL_MAGIC {
            return Err(Corrupt::JournalMagic.into());
        }
        let second = match be32(&bytes, 4)? {
            3 => false,
            4 => true,
            _ => return Err(Corrupt::JournalMagic.into()),
        };
        let feature = |at| if second { be32(&bytes, at) } else { Ok(0) };
        let (compat, incompat) = (feature(36)?, feature(40)?);
        if incompat & !incompat::READ != 0 {
            let what = format!("ext4 journal with the incompatible features {:#x}", incompat & !incompat::READ);
            return Err(Error::new(Kind::Unsupported, what));
        }
        let summed = incompat & (incompat::CSUM_V2 | incompat::CSUM_V3) != 0;
        if summed && fs.verify {
            if byte(&bytes, 80)? != 4 {
                return Err(Error::new(Kind::Unsupported, "ext4 journal with checksums that are not crc32c"));
            }
            let checksum = crc32c(crc32c(!0, part(&bytes, 0, 252)?), &[0; 4]);
            if crc32c(checksum, part(&bytes, 256, 768)?) != be32(&bytes, 252)? {
                return Err(Corrupt::JournalSuperblockChecksum.into());
            }
        }
        let bad = |field, value: u32| Err(Error::from(Corrupt::JournalGeometry { field, value: value.into() }));
        let block_bytes = be32(&bytes, 12)?;
        if block_bytes != fs.superblock.block_bytes {
            return bad("blocksize", block_bytes);
        }
        let end = be32(&bytes, 16)?;
        if end > JOURNAL_BLOCKS_MAX || u64::from(end).saturating_mul(block_bytes.into()) > inode.size {
            return bad("maxlen", end);
        }
        let fast_commits = match feature(84)? {
            _ if incompat & incompat::FAST_COMMIT == 0 => 0,
            0 => FAST_COMMIT_BLOCKS,
            blocks => blocks,
        };
        let last = end.saturating_sub(fast_commits);
        let first = be32(&bytes, 20)?;
        if first == 0 || first >= last {
            return bad("first", first);
        }
        let start = be32(&bytes, 28)?;
        if start == 0 {
            return Ok(None);
        }
        if start < first || start >= last {
            return bad("start", start);
        }
        let uuid: [u8; 16] = array(&bytes, 48)?;
        let sequence = be32(&bytes, 24)?;
        let seed = crc32c(!0, &uuid);
        Ok(Some(Self {
            fs,
            inode,
            known: RefCell::new(None),
            first,
            last,
            end,
            start,
            sequence,
            compat,
            incompat,
            seed,
        }))
    }

    fn has(&self, feature: u32) -> bool {
        self.incompat & feature != 0
    }

    /// Whether blocks of the journal have crc32c, and these are to be verified.
    fn summed(&self) -> bool {
        self.has(incompat::CSUM_V2 | incompat::CSUM_V3) && self.fs.verify
    }

    /// Which block of the device holds a block of the journal.
    fn place(&self, logical: u32) -> Result<u64> {
        let logical = u64::from(logical);
        let mut known = self.known.borrow_mut();
        let (from, run) = match *known {
            Some((from, run)) if (from..from.saturating_add(run.len)).contains(&logical) => (from, run),
            _ => *known.insert((logical, self.fs.run(self.inode, logical)?)),
        };
        match run.place.after(logical.saturating_sub(from)) {
            Place::Block(block) => Ok(block),
            _ => Err(Corrupt::JournalHole { block: logical }.into()),
        }
    }

    fn read(&self, logical: u32, buf: &mut [u8]) -> Result<()> {
        self.fs.volume.read_at(buf, self.fs.volume.byte(self.place(logical)?))
    }

    /// The blocks of fast commits: the kernel leaves one free between the log and them.
    pub(super) fn fast_commit_blocks(&self) -> std::ops::Range<u32> {
        self.last.saturating_add(1)..self.end
    }

    /// Fills `buf` with a block of fast commits.
    pub(super) fn read_fast_commit(&self, logical: u32, buf: &mut [u8]) -> Result<()> {
        self.read(logical, buf)
    }

    /// The block of the log `count` behind `at`.
    fn after(&self, at: u32, count: u32) -> u32 {
        let next = at.saturating_add(count);
        if next >= self.last { next.saturating_sub(self.last).saturating_add(self.first) } else { next }
    }

    /// Reads all transactions that were committed.
    pub(super) fn log(&self) -> Result<Log> {
        let mut scan = Scan {
            journal: self,
            block: vec![0; self.fs.superblock.block_bytes as usize],
            at: self.start,
            sequence: self.sequence,
            pending: Vec::new(),
            committed: Vec::new(),
            pending_revocations: Vec::new(),
            revoked: HashMap::new(),
            crc32: !0,
            doubtful: false,
            commit_time: 0,
        };
        // Each round goes on by a block, and the log is no longer than it is.
        let mut left = self.last.saturating_sub(self.first);
        while left > 0 {
            let Some(blocks) = scan.step()? else { break };
            left = left.saturating_sub(blocks);
        }
        let next_sequence = scan.sequence;
        let (committed, revoked) = (scan.committed, scan.revoked);
        let mut newest: BTreeMap<u64, Logged> = BTreeMap::new();
        for logged in committed {
            let gone = revoked.get(&logged.target).is_some_and(|revocation| !is_later(logged.sequence, *revocation));
            if !gone {
                newest.insert(logged.target, logged);
            }
        }
        let mut block = vec![0; self.fs.superblock.block_bytes as usize];
        let mut replayed = BTreeMap::new();
        for (target, logged) in newest {
            let corrupt = |kind: fn(u32, u64) -> Corrupt| Err(Error::from(kind(logged.sequence, target)));
            if target >= self.fs.superblock.blocks {
                return corrupt(|sequence, block| Corrupt::JournalBlockNumber { sequence, block });
            }
            if self.summed() {
                self.fs.volume.read_at(&mut block, self.fs.volume.byte(logged.block))?;
                let checksum = crc32c(crc32c(self.seed, &logged.sequence.to_be_bytes()), &block);
                let checksum = if self.has(incompat::CSUM_V3) { checksum } else { checksum & 0xFFFF };
                if checksum != logged.checksum {
                    return corrupt(|sequence, block| Corrupt::JournalDataChecksum { sequence, block });
                }
            }
            replayed.insert(target, Replayed { block: logged.block, escaped: logged.escaped });
        }
        Ok(Log { replayed, next_sequence })
    }
}

/// A walk through the log.
struct Scan<'a, 'b> {
    journal: &'b Journal<'a>,
    block: Vec<u8>,
    at: u32,
    sequence: u32,
    /// Of the transaction at hand.
    pending: Vec<Logged>,
    committed: Vec<Logged>,
    pending_revocations: Vec<u64>,
    /// The last transaction that revoked a block.
    revoked: HashMap<u64, u32>,
    crc32: u32,
    /// A descriptor lacked its checksum: it is an old one, or the journal is broken. The next commit's time tells.
    doubtful: bool,
    commit_time: u64,
}

impl Scan<'_, '_> {
    /// Reads one block of the log and what belongs to it: how many blocks, or `None` at the end.
    fn step(&mut self) -> Result<Option<u32>> {
        let journal = self.journal;
        let mut block = std::mem::take(&mut self.block);
        journal.read(self.at, &mut block)?;
        let own = part(&block, 0, 4)? == JOURNAL_MAGIC && be32(&block, 8)? == self.sequence;
        let step = match (own, be32(&block, 4)?) {
            (true, 1) => self.descriptor(&block).map(Some),
            (true, 2) => self.commit(&block),
            (true, 5) => self.revoke(&block).map(Some),
            _ => Ok(None),
        };
        self.block = block;
        let step = step?;
        self.at = journal.after(self.at, step.unwrap_or(0));
        Ok(step)
    }

    /// Whether a descriptor or revoke block has the checksum in its last four bytes.
    fn has_tail(&self, block: &[u8]) -> Result<bool> {
        let at = block.len().saturating_sub(4);
        let checksum = crc32c(crc32c(self.journal.seed, part(block, 0, at)?), &[0; 4]);
        Ok(!self.journal.summed() || checksum == be32(block, at)?)
    }

    fn limit(&self) -> Result<()> {
        let logged = self.pending.len().saturating_add(self.committed.len());
        let revoked = self.pending_revocations.len().saturating_add(self.revoked.len());
        if logged.saturating_add(revoked) > LOGGED_MAX {
            return Err(Error::new(Kind::Limit, format!("ext4 journal of more than {LOGGED_MAX} logged blocks")));
        }
        Ok(())
    }

    fn descriptor(&mut self, block: &[u8]) -> Result<u32> {
        let journal = self.journal;
        self.doubtful |= !self.has_tail(block)?;
        let v3 = journal.has(incompat::CSUM_V3);
        let wide = journal.has(incompat::BITS_64);
        let v2 = journal.has(incompat::CSUM_V2);
        let tag_bytes = match (v3, v2, wide) {
            (true, ..) => 16,
            (_, true, true) => 14,
            (_, true, false) => 10,
            (_, false, true) => 12,
            (_, false, false) => 8,
        };
        let tail = if v2 || v3 { 4 } else { 0 };
        let end = block.len().saturating_sub(tail);
        let mut at = 12_usize;
        let mut count = 0_u32;
        if journal.compat & COMPAT_CHECKSUM != 0 {
            self.crc32 = crc32_be(self.crc32, block);
        }
        let mut data = Vec::new();
        while at.saturating_add(tag_bytes) <= end {
            let tag = part(block, at, tag_bytes)?;
            let flags = if v3 { be32(tag, 4)? } else { be16(tag, 6)?.into() };
            let high = if wide { be32(tag, 8)? } else { 0 };
            let checksum = if v3 { be32(tag, 12)? } else { be16(tag, 4)?.into() };
            count = count.saturating_add(1);
            let place = journal.after(self.at, count);
            if place >= journal.last {
                break; // more tags than the log has blocks
            }
            let place_on_device = journal.place(place)?;
            if journal.compat & COMPAT_CHECKSUM != 0 {
                data.resize(block.len(), 0);
                journal.read(place, &mut data)?;
                self.crc32 = crc32_be(self.crc32, &data);
            }
            self.pending.push(Logged {
                target: join(be32(tag, 0)?, high),
                block: place_on_device,
                sequence: self.sequence,
                escaped: flags & tag::ESCAPED != 0,
                checksum,
            });
            self.limit()?;
            at = at.saturating_add(tag_bytes);
            if flags & tag::SAME_UUID == 0 {
                at = at.saturating_add(16);
            }
            if flags & tag::LAST != 0 {
                break;
            }
        }
        Ok(count.saturating_add(1))
    }

    fn revoke(&mut self, block: &[u8]) -> Result<u32> {
        let journal = self.journal;
        self.doubtful |= !self.has_tail(block)?;
        let number_bytes = if journal.has(incompat::BITS_64) { 8 } else { 4 };
        let used = be32(block, 12)? as usize;
        let tail = if journal.has(incompat::CSUM_V2 | incompat::CSUM_V3) { 4 } else { 0 };
        if used > block.len().saturating_sub(tail) {
            if self.doubtful {
                return Ok(1);
            }
            return Err(Corrupt::JournalRevoke { sequence: self.sequence }.into());
        }
        let numbers = part(block, 16, used.saturating_sub(16))?;
        for number in numbers.chunks_exact(number_bytes) {
            self.pending_revocations.push(if number_bytes == 8 { be64(number, 0)? } else { be32(number, 0)?.into() });
        }
        self.limit()?;
        Ok(1)
    }

    fn commit(&mut self, block: &[u8]) -> Result<Option<u32>> {
        let journal = self.journal;
        let time = be64(block, 48)?;
        let sequence = self.sequence;
        // A log wraps over older ones: what is wrong and older than the last commit is the end, not a fault.
        if self.doubtful {
            if time >= self.commit_time {
                return Err(Corrupt::JournalDescriptorChecksum { sequence }.into());
            }
            return Ok(None);
        }
        let good = if journal.has(incompat::CSUM_V2 | incompat::CSUM_V3) {
            let checksum = crc32c(crc32c(journal.seed, part(block, 0, 16)?), &[0; 4]);
            let checksum = crc32c(checksum, part(block, 20, block.len().saturating_sub(20))?);
            !journal.summed() || checksum == be32(block, 16)?
        } else if journal.compat & COMPAT_CHECKSUM != 0 {
            let found = (byte(block, 12)?, byte(block, 13)?, be32(block, 16)?);
            !journal.fs.verify || found == (1, 4, self.crc32) || found == (0, 0, 0)
        } else {
            true
        };
        if !good {
            // With asynchronous commits the last one may be there before what it commits.
            if time < self.commit_time || journal.has(incompat::ASYNC_COMMIT) {
                return Ok(None);
            }
            return Err(Corrupt::JournalCommitChecksum { sequence }.into());
        }
        self.commit_time = time;
        self.crc32 = !0;
        self.committed.append(&mut self.pending);
        for number in self.pending_revocations.drain(..) {
            self.revoked.insert(number, sequence);
        }
        self.sequence = sequence.wrapping_add(1);
        Ok(Some(1))
    }
}
