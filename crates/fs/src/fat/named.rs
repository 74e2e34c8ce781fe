//! Entries of directories that are written: found, placed, taken away.

use block::{Error, Kind, Result};

use super::directory::{self, Found, Position, Seen};
use super::entry::{self, DELETED, ENTRY_BYTES, Raw, Record, Set, UNUSED};
use super::nodes::{Node, State};
use super::time::Stamp;
use super::write::Patch;
use super::{Corrupt, Fat, name};
use crate::path::Printable;
use crate::{Inode, Time, utf16};
use std::ops::ControlFlow;

/// A file that a directory names, and all its names.
pub(super) struct Named {
    pub position: Position,
    pub inode: Inode,
    pub names: Vec<Vec<u16>>,
    pub short: Option<name::Short>,
    pub units: Vec<u16>,
}

impl Fat {
    /// Finds room for entries in a directory, and says where each goes, the first one's number, and what must be written
    /// after them so that they are seen.
    pub(super) fn place_entries(
        &self,
        state: &mut State,
        inode: Inode,
        node: &mut Node,
        count: usize,
    ) -> Result<(Vec<u64>, u32, Patch)> {
        let sector = (u64::from(self.geometry.sector_bytes) / ENTRY_BYTES) as u32;
        let count = count as u32;
        let (gap, end) = self.with_index(inode, &node.chain, |index| (index.gap(count, sector), index.end))?;
        let place = |node: &Node, slot: u32| {
            let offset = u64::from(slot).saturating_mul(ENTRY_BYTES);
            node.chain.place(offset).map(|(at, _)| at).ok_or_else(|| Corrupt::ChainEnds.at("entry of a directory"))
        };
        let Some(slot) = gap else {
            let slot = directory::within_sector(end, count, sector);
            let behind = slot.saturating_add(count);
            while node.chain.bytes < u64::from(behind).saturating_mul(ENTRY_BYTES) {
                self.extend_directory(state, inode, node)?;
            }
            let mut padding = Patch::new();
            for unused in end..slot {
                let mut raw: Raw = [0; 32];
                raw.iter_mut()
                    .take(1)
                    .for_each(|first| *first = if self.geometry.is_exfat() { UNUSED } else { DELETED });
                padding.push((place(node, unused)?, raw));
            }
            let places = (slot..behind).map(|slot| place(node, slot)).collect::<Result<_>>()?;
            // What follows the end may be anything: it is made to be the end.
            if u64::from(behind).saturating_mul(ENTRY_BYTES) < node.chain.bytes {
                let at = place(node, behind)?;
                let mut next: Raw = [0; 32];
                self.device.read_at(&mut next, at)?;
                if next.first() != Some(&0) {
                    self.patch(&[(at, [0; 32])])?;
                }
            }
            self.with_index(inode, &node.chain, |index| index.extend(end, slot, behind))?;
            return Ok((places, slot, padding));
        };
        let places = (slot..slot.saturating_add(count)).map(|slot| place(node, slot)).collect::<Result<_>>()?;
        self.with_index(inode, &node.chain, |index| index.take(slot, count))?;
        Ok((places, slot, Patch::new()))
    }

    /// The entries of a file with a new name, and its short one.
    pub(super) fn entries(
        &self,
        directory: Inode,
        node: &Node,
        units: &[u16],
        record: &Record,
    ) -> Result<(Vec<Raw>, Option<name::Short>)> {
        if self.geometry.is_exfat() {
            return Ok((entry::exfat_entries(units, &self.fold, record), None));
        }
        if let Some(short) = name::exact_short(units) {
            let taken = self.with_index(directory, &node.chain, |index| index.has_short(&short))?;
            // Taken by a file whose long name is another one.
            if !taken {
                return Ok((entry::fat_entries(units, &short, false, record, self.is_fat32()), Some(short)));
            }
        }
        let short =
            self.with_index(directory, &node.chain, |index| name::new_short(units, |short| index.has_short(short)))?;
        let short = short.ok_or_else(|| Error::new(Kind::NoSpace, "no short name is left in the directory"))?;
        Ok((entry::fat_entries(units, &short, true, record, self.is_fat32()), Some(short)))
    }

    /// Puts the entries of a file into a directory; returns where the one that makes it known is.
    pub(super) fn insert(
        &self,
        state: &mut State,
        (directory, node): (Inode, &mut Node),
        units: &[u16],
        record: &Record,
    ) -> Result<(u64, Patch)> {
        let (entries, short) = self.entries(directory, node, units, record)?;
        let (places, slot, padding) = self.place_entries(state, directory, node, entries.len())?;
        let main = if self.geometry.is_exfat() { places.first() } else { places.last() };
        let at = *main.ok_or_else(|| Corrupt::EntrySet.at("no entries"))?;
        let mut patch: Patch = places.iter().copied().zip(entries).collect();
        let position = Position { slot, slots: patch.len() as u32, at };
        if self.geometry.is_exfat() && !self.same_sector(&patch) {
            // The first one makes them a file: its sector is written last.
            patch.reverse();
        }
        patch.extend(padding);
        self.with_index(directory, &node.chain, |index| {
            index.put(&self.fold, units, short, position, self.options.code_page);
        })?;
        Ok((at, patch))
    }

    /// A file of a directory by its name.
    pub(super) fn named(&self, state: &State, directory: Inode, node: &Node, name: &[u8]) -> Result<Option<Named>> {
        let Some(position) = self.find(directory, node, name)? else { return Ok(None) };
        let mut named = None;
        self.scan(&node.chain, position.slot, &mut |seen| {
            if let Seen::File(found) = seen
                && found.at == position.at
            {
                named = Some(self.names(state, node, position, &found));
            }
            ControlFlow::Break(())
        })?;
        // A long name is met piece by piece.
        if named.is_none() {
            self.scan(&node.chain, position.slot, &mut |seen| match seen {
                Seen::File(found) if found.at == position.at => {
                    named = Some(self.names(state, node, position, &found));
                    ControlFlow::Break(())
                }
                Seen::Other(_) => ControlFlow::Continue(()),
                _ => ControlFlow::Break(()),
            })?;
        }
        named.map(Some).ok_or_else(|| Corrupt::EntrySet.at(format!("entries of {}", Printable(name))))
    }

    pub(super) fn names(&self, state: &State, node: &Node, position: Position, found: &Found<'_>) -> Named {
        let listed = utf16::to_units(&self.listed(found)).unwrap_or_else(|| found.units.clone());
        let short = found.short.or_else(|| found.entries.first().map(|entry| name::short_at(entry)));
        let short = short.filter(|_| !self.geometry.is_exfat());
        let mut names = vec![self.fold.name(&listed)];
        if let Some(short) = &short {
            names.push(self.fold.name(&name::short_units(short, 0, self.options.code_page)));
        }
        let inode = Self::number(state, node, position.at);
        Named { position, inode, names, short, units: found.units.clone() }
    }

    /// What marks the entries of a file as not in use; in the order in which they are to be written.
    pub(super) fn unlink(&self, node: &Node, named: &Named) -> Result<Patch> {
        let mut patch = Patch::new();
        for slot in 0..named.position.slots {
            let offset = u64::from(named.position.slot.saturating_add(slot)).saturating_mul(ENTRY_BYTES);
            let (at, _) = node.chain.place(offset).ok_or_else(|| Corrupt::ChainEnds.at("entry of a directory"))?;
            let mut raw = [0; 32];
            self.device.read_at(&mut raw, at)?;
            let exfat = self.geometry.is_exfat();
            raw.iter_mut().take(1).for_each(|first| *first = if exfat { *first & 0x7f } else { DELETED });
            patch.push((at, raw));
        }
        Ok(patch)
    }

    pub(super) fn is_empty(&self, node: &Node) -> Result<bool> {
        let mut empty = true;
        self.scan(&node.chain, 0, &mut |seen| {
            empty = !matches!(seen, Seen::File(_));
            if empty { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        Ok(empty)
    }

    /// That a file may be removed as what it is thought to be.
    pub(super) fn check_removable(
        &self,
        state: &State,
        inode: Inode,
        directory_wanted: bool,
        name: &[u8],
    ) -> Result<()> {
        let node = self.node(state, inode)?;
        let fail = |kind| Err(Error::new(kind, Printable(name).to_string()));
        match (node.record.is_directory(), directory_wanted) {
            (true, false) => fail(Kind::IsDirectory),
            (false, true) => fail(Kind::NotDirectory),
            (true, true) if !self.is_empty(&node)? => fail(Kind::NotEmpty),
            _ => Ok(()),
        }
    }

    /// A file has lost its name: its clusters are given up, unless it is held.
    pub(super) fn let_go(&self, state: &mut State, inode: Inode, mut node: Node) -> Result<()> {
        self.forget_node(inode);
        self.forget_index(inode);
        if state.held.contains_key(&inode.0) {
            let set = node.set.as_ref().map(|set| Set { places: Vec::new(), ..set.clone() });
            state.remove(inode, set);
            return Ok(());
        }
        state.remove(inode, None);
        self.complete(&mut node)?;
        self.give_up(state, &node.chain.runs, None, node.record.contiguous)
    }

    /// The time of a directory in which something was changed; written when it is another one for people.
    pub(super) fn touch(&self, state: &mut State, inode: Inode, node: &mut Node, now: Time) -> Result<()> {
        let record = Record { modified: now, ..node.record };
        match Stamp::of(node.record.modified).word() == Stamp::of(now).word() {
            true => Ok(()),
            false => self.put(state, inode, node, record),
        }
    }

    /// Runs a change of a directory, which is not kept where that fails.
    pub(super) fn in_directory<T>(
        &self,
        state: &mut State,
        inode: Inode,
        change: impl FnOnce(&mut State, &mut Node) -> Result<T>,
    ) -> Result<T> {
        self.directory(state, inode)?;
        let mut node = self.take_node(state, inode)?;
        let done = change(state, &mut node);
        match &done {
            Ok(_) => self.keep_node(inode, node),
            Err(_) => self.forget_index(inode),
        }
        done
    }

    /// Whether `inside` is `directory` or somewhere below it.
    pub(super) fn is_below(&self, state: &State, directory: Inode, inside: Inode) -> Result<bool> {
        let mut pending = vec![directory];
        let mut met = std::collections::HashSet::new();
        while let Some(next) = pending.pop() {
            if next == inside {
                return Ok(true);
            }
            if !met.insert(next) {
                continue;
            }
            let node = self.directory(state, next)?;
            self.scan(&node.chain, 0, &mut |seen| {
                if let Seen::File(found) = seen {
                    let set =
                        Set { places: Vec::new(), entries: found.entries.to_vec(), exfat: self.geometry.is_exfat() };
                    if set.record(self.is_fat32()).is_some_and(|record| record.is_directory()) {
                        pending.push(Self::number(state, &node, found.at));
                    }
                }
                ControlFlow::Continue(())
            })?;
        }
        Ok(false)
    }

    pub(super) fn exists(name: &[u8]) -> Error {
        Error::new(Kind::Exists, Printable(name).to_string())
    }
}
