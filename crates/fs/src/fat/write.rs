//! Changes, in an order that a crash may cut.
//!
//! ```text
//! grow     bytes │ table (and bitmap) of the new clusters │ link from the old last one │ entry
//! shrink   entry │ table (and bitmap)
//! make     directory: zeroes, table, flush │ entry
//! remove   entry │ table (and bitmap) │ … the clusters are had again after the next flush
//! rename   in one sector at once; else the new entry │ flush │ the old one
//! ```
//! Cut between two steps, clusters of the file that was being written belong to nobody, and no cluster ever belongs to
//! two files; a file that was being renamed may have both names. The entries of one file are placed in one sector, which
//! a disk writes as a whole. While it is changed the file system is marked as in use, and FAT32's count of free clusters
//! as unknown.

use std::collections::BTreeMap;

use block::{BlockDevice, Error, Kind, Result};

use super::chain::Chain;
use super::entry::{self, ARCHIVE, DELETED, DIRECTORY, ENTRY_BYTES, READ_ONLY, Raw, Record, Set};
use super::free::Free;
use super::grow::last_cluster;
use super::named::Named;
use super::nodes::{Home, Node, State};
use super::table::Link;
use super::time::Stamp;
use super::{Corrupt, Fat, ROOT, name};
use crate::path::Printable;
use crate::writable::{Changes, Writable};
use crate::{FileType, Inode, Time};

/// Entries that are to be written: the byte of the device where each one is.
pub(super) type Patch = Vec<(u64, Raw)>;

impl Fat {
    pub(super) fn writer(&self) -> Result<&dyn BlockDevice> {
        self.writer.as_deref().ok_or_else(|| Error::new(Kind::ReadOnly, "a file system that was opened to be read"))
    }

    /// The entries of a file, the first one at byte `at`.
    pub(super) fn read_set(&self, at: u64, contiguous: bool) -> Result<Set> {
        let mut first = [0; 32];
        self.device.read_at(&mut first, at)?;
        let mut set = Set { places: vec![at], entries: vec![first], exfat: self.geometry.is_exfat() };
        if set.exfat {
            let count = first.get(1).copied().unwrap_or_default();
            if first.first() != Some(&entry::FILE) || count > entry::SECONDARIES_MAX {
                return Err(Corrupt::EntrySet.at(format!("entry at byte {at}")));
            }
            let mut at = at;
            for _ in 0..count {
                at = self.entry_after(at, contiguous)?;
                let mut raw = [0; 32];
                self.device.read_at(&mut raw, at)?;
                set.places.push(at);
                set.entries.push(raw);
            }
        }
        Ok(set)
    }

    /// Where the entry after the one at byte `at` is.
    pub(super) fn entry_after(&self, at: u64, contiguous: bool) -> Result<u64> {
        let next = at.saturating_add(ENTRY_BYTES);
        let wrong = || Corrupt::EntrySet.at(format!("entries from byte {at} on"));
        let cluster = self.geometry.cluster_of(at).ok_or_else(wrong)?;
        if self.geometry.cluster_of(next) == Some(cluster) {
            return Ok(next);
        }
        let after = match contiguous {
            true => cluster.saturating_add(1),
            false => match self.table.get(&*self.device, &self.geometry, cluster)? {
                Link::Next(next) => next,
                _ => return Err(wrong()),
            },
        };
        self.geometry.cluster_at(after).ok_or_else(wrong)
    }

    /// Before the first change: counts what is free, and marks the file system as in use.
    pub(super) fn begin(&self, state: &mut State) -> Result<()> {
        let writer = self.writer()?;
        if state.free.is_none() {
            let (device, geometry) = (&*self.device, &self.geometry);
            state.free = Some(if geometry.is_exfat() {
                if self.bitmap.bytes == 0 {
                    return Err(Corrupt::Bitmap.at("writing to an exFAT file system"));
                }
                Free::of_bitmap(device, geometry, &self.bitmap)?
            } else {
                Free::of_table(device, geometry, &self.table)?
            });
        }
        if !state.is_dirty {
            self.mark(writer, true)?;
            self.write_info(writer, u32::MAX)?;
            state.is_dirty = true;
        }
        Ok(())
    }

    /// Says in the boot sector whether the file system is in use.
    pub(super) fn mark(&self, writer: &dyn BlockDevice, in_use: bool) -> Result<()> {
        let mut state = [0];
        self.device.read_at(&mut state, self.geometry.state_at)?;
        let bit = self.geometry.state_bit;
        let changed = state.map(|state| if in_use { state | bit } else { state & !bit });
        if changed == state { Ok(()) } else { writer.write_at(&changed, self.geometry.state_at) }
    }

    /// FAT32: how many clusters are free.
    pub(super) fn write_info(&self, writer: &dyn BlockDevice, free: u32) -> Result<()> {
        let Some(at) = self.geometry.info_at else { return Ok(()) };
        let info = block::bytes::read_up_to(&*self.device, at, 512)?;
        if block::bytes::has(&info, 0, b"RRaA") && block::bytes::has(&info, 484, b"rrAa") {
            writer.write_at(&free.to_le_bytes(), at.saturating_add(488))?;
        }
        Ok(())
    }

    pub(super) fn flush_device(&self, state: &mut State) -> Result<()> {
        self.writer()?.flush()?;
        if let Some(free) = &mut state.free {
            free.flushed();
        }
        Ok(())
    }

    /// Writes entries: each sector once, in the order of their first appearance.
    pub(super) fn patch(&self, changes: &[(u64, Raw)]) -> Result<()> {
        let writer = self.writer()?;
        let sector = u64::from(self.geometry.sector_bytes).max(512);
        let mut sectors: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut order = Vec::new();
        for (at, raw) in changes {
            let start = at.checked_div(sector).unwrap_or_default().saturating_mul(sector);
            if let std::collections::btree_map::Entry::Vacant(vacant) = sectors.entry(start) {
                vacant.insert(block::bytes::read_vec(&*self.device, start, sector as usize)?);
                order.push(start);
            }
            let into = at.saturating_sub(start) as usize;
            let bytes = sectors.get_mut(&start).into_iter().flatten();
            bytes.skip(into).zip(raw).for_each(|(to, byte)| *to = *byte);
        }
        for start in order {
            writer.write_at(sectors.get(&start).map_or(&[], Vec::as_slice), start)?;
        }
        Ok(())
    }

    pub(super) fn same_sector(&self, changes: &[(u64, Raw)]) -> bool {
        let sector = u64::from(self.geometry.sector_bytes).max(512);
        let mut sectors = changes.iter().map(|(at, _)| at.checked_div(sector));
        sectors.next().is_none_or(|first| sectors.all(|sector| sector == first))
    }

    /// Makes the entries of a file say `record`, where that is something new.
    pub(super) fn put(&self, state: &mut State, inode: Inode, node: &mut Node, record: Record) -> Result<()> {
        let Some(set) = &mut node.set else {
            node.record = record;
            return Ok(());
        };
        let before = set.entries.clone();
        set.update(&node.record, &record, self.is_fat32());
        let changes: Patch = (set.places.iter().zip(set.entries.iter().zip(&before)))
            .filter(|(_, (new, old))| new != old)
            .map(|(at, (new, _))| (*at, *new))
            .collect();
        node.record = record;
        if set.places.is_empty() {
            state.update_removed(inode, set);
        }
        self.patch(&changes)
    }

    /// Takes a file out of those that are kept, to change it.
    pub(super) fn take_node(&self, state: &State, inode: Inode) -> Result<Node> {
        let node = self.node(state, inode)?;
        self.forget_node(inode);
        Ok(std::sync::Arc::unwrap_or_clone(node))
    }

    pub(super) fn forget_node(&self, inode: Inode) {
        self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&inode.0);
    }

    pub(super) fn keep_node(&self, inode: Inode, node: Node) {
        let mut opened = self.opened.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        opened.insert(inode.0, std::sync::Arc::new(node));
    }

    pub(super) fn forget_index(&self, inode: Inode) {
        let mut indices = self.indices.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(index) = indices.of.remove(&inode.0) {
            indices.names = indices.names.saturating_sub(index.len());
        }
    }

    /// The size of a file after `len` bytes at `offset`.
    fn end_of(&self, offset: u64, len: u64) -> Result<u64> {
        let most = self.file_bytes_max();
        offset
            .checked_add(len)
            .filter(|end| *end <= most)
            .ok_or_else(|| Error::new(Kind::Limit, format!("{len} bytes at {offset} of a file, which may have {most}")))
    }
}

impl Writable for Fat {
    fn create(&self, directory: Inode, name: &[u8], file_type: FileType, now: Time) -> Result<Inode> {
        let attributes = match file_type {
            FileType::Regular => ARCHIVE,
            FileType::Directory => DIRECTORY,
            other => return Err(Error::new(Kind::Unsupported, format!("a {other:?} in a FAT file system"))),
        };
        let state = &mut *self.state_mut();
        self.begin(state)?;
        let units = name::acceptable(name)?;
        self.in_directory(state, directory, |state, node| {
            if self.find(directory, node, name)?.is_some() {
                return Err(Self::exists(name));
            }
            let mut record = Record::new(attributes, now);
            let mut made = Node {
                record,
                set: Some(Set { places: Vec::new(), entries: Vec::new(), exfat: self.geometry.is_exfat() }),
                chain: Chain::default(),
            };
            if record.is_directory() {
                let bytes = u64::from(self.geometry.cluster_bytes);
                let runs = self.allocate(state, &made.chain, 1)?;
                let first = runs.first().map_or(0, |(first, _)| *first);
                let at = self.geometry.cluster_at(first).unwrap_or_default();
                let mut head = vec![0_u8; bytes as usize];
                if !self.geometry.is_exfat() {
                    // The root is called 0.
                    let above = if directory == ROOT { 0 } else { node.record.first };
                    let dots = [
                        entry::dots(b".", first, &record, self.is_fat32()),
                        entry::dots(b"..", above, &record, self.is_fat32()),
                    ];
                    head.iter_mut().zip(dots.iter().flatten()).for_each(|(to, byte)| *to = *byte);
                }
                self.writer()?.write_at(&head, at)?;
                if self.geometry.is_exfat() {
                    record.size = bytes;
                    record.valid = bytes;
                }
                self.link(state, &mut made, &mut record, &runs)?;
                self.flush_device(state)?;
            }
            let (at, patch) = self.insert(state, (directory, node), &units, &record)?;
            self.patch(&patch)?;
            self.touch(state, directory, node, now)?;
            Ok(state.make(at, node.record.contiguous))
        })
    }

    fn write(&self, inode: Inode, buf: &[u8], offset: u64, now: Time) -> Result<()> {
        let writer = self.writer()?;
        let end = self.end_of(offset, buf.len() as u64)?;
        {
            // Bytes of a file alone, by several at once.
            let state = self.state();
            let node = self.regular(&state, inode)?;
            if buf.is_empty() {
                return Ok(());
            }
            if state.is_dirty && end <= node.record.valid && same_stamp(node.record.modified, now) {
                return node.chain.write(writer, buf, offset);
            }
        }
        let state = &mut *self.state_mut();
        self.regular(state, inode)?;
        self.begin(state)?;
        let mut node = self.take_node(state, inode)?;
        let mut record = node.record;
        let valid = record.valid;
        self.grow(state, &mut node, &mut record, end, |chain| {
            if offset > valid {
                chain.zero(writer, valid, offset.saturating_sub(valid))?;
            }
            chain.write(writer, buf, offset)
        })?;
        record.size = record.size.max(end);
        record.valid = record.valid.max(end);
        record.attributes |= ARCHIVE;
        record.modified = now;
        self.put(state, inode, &mut node, record)?;
        self.keep_node(inode, node);
        Ok(())
    }

    fn truncate(&self, inode: Inode, size: u64, now: Time) -> Result<()> {
        let writer = self.writer()?;
        self.end_of(size, 0)?;
        let state = &mut *self.state_mut();
        self.regular(state, inode)?;
        self.begin(state)?;
        let mut node = self.take_node(state, inode)?;
        let mut record = Record { modified: now, ..node.record };
        record.attributes |= ARCHIVE;
        let old = record.size;
        if size > old {
            let exfat = self.geometry.is_exfat();
            self.grow(state, &mut node, &mut record, size, |chain| match exfat {
                // What is behind the valid bytes reads as zero.
                true => Ok(()),
                false => chain.zero(writer, old, size.saturating_sub(old)),
            })?;
            record.size = size;
            record.valid = if exfat { record.valid } else { size };
            self.put(state, inode, &mut node, record)?;
        } else {
            self.complete(&mut node)?;
            let kept = self.geometry.clusters_for(size).saturating_mul(self.geometry.cluster_bytes.into());
            record.size = size;
            record.valid = record.valid.min(size);
            let contiguous = record.contiguous;
            if size == 0 {
                record.first = 0;
                record.contiguous = false;
            }
            self.put(state, inode, &mut node, record)?;
            let rest = node.chain.truncate(kept);
            self.give_up(state, &rest, last_cluster(&self.geometry, &node.chain), contiguous)?;
        }
        self.keep_node(inode, node);
        Ok(())
    }

    fn remove(&self, directory: Inode, name: &[u8], directory_wanted: bool, now: Time) -> Result<()> {
        let state = &mut *self.state_mut();
        self.begin(state)?;
        self.in_directory(state, directory, |state, node| {
            let named = self.named(state, directory, node, name)?;
            let named = named.ok_or_else(|| Error::new(Kind::NotFound, Printable(name).to_string()))?;
            self.check_removable(state, named.inode, directory_wanted, name)?;
            let gone = self.take_node(state, named.inode)?;
            self.patch(&self.unlink(node, &named)?)?;
            self.with_index(directory, &node.chain, |index| index.remove(&named.names, named.short, named.position))?;
            self.touch(state, directory, node, now)?;
            self.let_go(state, named.inode, gone)
        })
    }

    fn rename(&self, from: (Inode, &[u8]), to: (Inode, &[u8]), replace: bool, now: Time) -> Result<()> {
        let state = &mut *self.state_mut();
        self.begin(state)?;
        let units = name::acceptable(to.1)?;
        let source = self.directory(state, from.0)?;
        let target = self.directory(state, to.0)?;
        let not_found = || Error::new(Kind::NotFound, Printable(from.1).to_string());
        let named = self.named(state, from.0, &source, from.1)?.ok_or_else(not_found)?;
        let there = self.named(state, to.0, &target, to.1)?.filter(|there| there.position.at != named.position.at);
        if from.0 == to.0 && named.units == units {
            return Ok(());
        }
        let is_directory = self.node(state, named.inode)?.record.is_directory();
        if is_directory && from.0 != to.0 && self.is_below(state, named.inode, to.0)? {
            return Err(Error::new(Kind::Invalid, format!("{} into itself", Printable(from.1))));
        }
        drop((source, target));
        if let Some(there) = &there {
            if !replace {
                return Err(Self::exists(to.1));
            }
            self.check_removable(state, there.inode, is_directory, to.1)?;
        }
        let mut moved = self.take_node(state, named.inode)?;
        if !is_directory {
            moved.record.attributes |= ARCHIVE;
        }
        let at = match there {
            Some(there) => self.replace(state, to.0, &there, &moved)?,
            None => {
                let record = moved.record;
                self.in_directory(state, to.0, |state, node| {
                    let (at, patch) = self.insert(state, (to.0, node), &units, &record)?;
                    let removal = if from.0 == to.0 { self.unlink(node, &named)? } else { Patch::new() };
                    let both = [patch.as_slice(), &removal].concat();
                    if from.0 == to.0 && self.same_sector(&both) {
                        self.patch(&both)?;
                    } else {
                        self.patch(&patch)?;
                        self.flush_device(state)?;
                    }
                    self.touch(state, to.0, node, now)?;
                    Ok((at, node.record.contiguous))
                })?
            }
        };
        // Written a second time where it was at once, which changes nothing.
        self.in_directory(state, from.0, |state, node| {
            self.patch(&self.unlink(node, &named)?)?;
            self.with_index(from.0, &node.chain, |index| index.remove(&named.names, named.short, named.position))?;
            self.touch(state, from.0, node, now)
        })?;
        state.go(named.inode, at.0, at.1);
        self.forget_node(named.inode);
        if is_directory && from.0 != to.0 && !self.geometry.is_exfat() {
            self.set_above(state, to.0, &moved)?;
        }
        Ok(())
    }

    fn change(&self, inode: Inode, changes: Changes) -> Result<()> {
        let state = &mut *self.state_mut();
        self.begin(state)?;
        let mut node = self.take_node(state, inode)?;
        let mut record = node.record;
        record.modified = changes.modified.unwrap_or(record.modified);
        record.accessed = changes.accessed.unwrap_or(record.accessed);
        record.created = changes.created.unwrap_or(record.created);
        if let Some(permissions) = changes.permissions.filter(|_| !record.is_directory()) {
            record.attributes =
                if permissions & 0o222 == 0 { record.attributes | READ_ONLY } else { record.attributes & !READ_ONLY };
        }
        self.put(state, inode, &mut node, record)?;
        self.keep_node(inode, node);
        Ok(())
    }

    fn hold(&self, inode: Inode) {
        let mut state = self.state_mut();
        let count = state.held.entry(inode.0).or_default();
        *count = count.saturating_add(1);
    }

    fn release(&self, inode: Inode) -> Result<()> {
        let state = &mut *self.state_mut();
        match state.held.get_mut(&inode.0) {
            Some(count) if *count > 1 => *count = count.saturating_sub(1),
            _ => {
                state.held.remove(&inode.0);
                if let Home::Removed(_) = state.home(inode) {
                    let node = self.take_node(state, inode)?;
                    return self.let_go(state, inode, node);
                }
            }
        }
        Ok(())
    }

    fn set_label(&self, label: &str, _: Time) -> Result<()> {
        let old = self.label_entry()?;
        let state = &mut *self.state_mut();
        let raw = self.new_label(label, old.map(|(_, raw)| raw))?;
        self.begin(state)?;
        if let Some(at) = self.geometry.label_at {
            let text = if label.is_empty() { *b"NO NAME    " } else { name::label(label)? };
            self.writer()?.write_at(&text, at)?;
        }
        match old {
            Some((at, mut raw_old)) if label.is_empty() => {
                let exfat = self.geometry.is_exfat();
                raw_old.iter_mut().take(1).for_each(|first| *first = if exfat { *first & 0x7f } else { DELETED });
                self.forget_index(ROOT);
                self.patch(&[(at, raw_old)])
            }
            Some((at, _)) => self.patch(&[(at, raw)]),
            None if label.is_empty() => Ok(()),
            None => self.in_directory(state, ROOT, |state, node| {
                let (places, _, padding) = self.place_entries(state, ROOT, node, 1)?;
                let mut patch: Patch = places.into_iter().map(|at| (at, raw)).collect();
                patch.extend(padding);
                self.patch(&patch)
            }),
        }
    }

    fn file_bytes_max(&self) -> u64 {
        match self.geometry.is_exfat() {
            // The device ends before.
            true => i64::MAX.unsigned_abs(),
            false => u32::MAX.into(),
        }
    }

    fn flush(&self) -> Result<()> {
        self.flush_device(&mut self.state_mut())
    }

    fn close(&self) -> Result<()> {
        let state = &mut *self.state_mut();
        let writer = self.writer()?;
        // Nobody has a file open any more, also where that was not said: a mount that ends drops what it had to say.
        for inode in std::mem::take(&mut state.held).into_keys().map(Inode) {
            if let Home::Removed(_) = state.home(inode) {
                let node = self.take_node(state, inode)?;
                self.let_go(state, inode, node)?;
            }
        }
        if !state.is_dirty {
            return writer.flush();
        }
        if let Some(free) = &state.free {
            self.write_info(writer, free.count())?;
        }
        self.flush_device(state)?;
        // What was in use before may be damaged: only a check takes that away.
        if !state.was_dirty {
            self.mark(writer, false)?;
            writer.flush()?;
        }
        state.is_dirty = false;
        Ok(())
    }
}

impl Fat {
    /// Makes the entries of `there` say what `moved` is; returns where they are. What it was is gone.
    fn replace(&self, state: &mut State, directory: Inode, there: &Named, moved: &Node) -> Result<(u64, bool)> {
        let mut node = self.take_node(state, there.inode)?;
        let gone = node.clone();
        let contiguous = self.directory(state, directory)?.record.contiguous;
        self.put(state, there.inode, &mut node, moved.record)?;
        self.flush_device(state)?;
        self.let_go(state, there.inode, gone)?;
        Ok((there.position.at, contiguous))
    }

    /// The directory above one that was moved, as its `..` has it.
    fn set_above(&self, state: &State, above: Inode, moved: &Node) -> Result<()> {
        let first = if above == ROOT { 0 } else { self.directory(state, above)?.record.first };
        let Some((at, _)) = moved.chain.place(ENTRY_BYTES) else { return Ok(()) };
        let mut raw = [0; 32];
        self.device.read_at(&mut raw, at)?;
        if !entry::is_dots(&raw) {
            return Ok(());
        }
        let mut set = Set { places: vec![at], entries: vec![raw], exfat: false };
        if let Some(old) = set.record(self.is_fat32()) {
            set.update(&old, &Record { first, ..old }, self.is_fat32());
        }
        let changes: Patch = set.places.into_iter().zip(set.entries).collect();
        self.patch(&changes)
    }
}

/// Whether two moments are the same one second.
fn same_stamp(one: Time, other: Time) -> bool {
    Stamp::of(one).word() == Stamp::of(other).word()
}
