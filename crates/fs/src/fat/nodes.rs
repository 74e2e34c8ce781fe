//! Files by their number, and what is kept of the file system while it is open.

use std::collections::{HashMap, HashSet};

use super::ROOT;
use super::chain::Chain;
use super::entry::{ENTRY_BYTES, Record, Set};
use super::free::Free;
use crate::Inode;

/// From this number on: files that were made or moved while the file system was open.
const FIRST_NEW: u64 = 1 << 63;

/// A file: what is known of it, where that stands (nowhere for the root), and where its content is.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub record: Record,
    pub set: Option<Set>,
    pub chain: Chain,
}

/// Where a file is.
#[derive(Debug, Clone)]
pub(super) enum Home {
    /// Its first entry, a byte of the device; and whether its directory lies in one piece that the table does not name.
    At(u64, bool),
    /// It has no name any more, and is in use.
    Removed(Set),
    /// It was removed.
    Gone,
}

/// What changes while the file system is open.
#[derive(Debug, Default)]
pub(super) struct State {
    /// Files that are not where their number says.
    homes: HashMap<u64, Home>,
    /// Their numbers, by the byte of the device.
    numbers: HashMap<u64, u64>,
    made: u64,
    /// First clusters of directories that lay in one piece when their files were given numbers, and do not any more.
    pub scattered: HashSet<u32>,
    /// How often each file is held.
    pub held: HashMap<u64, u32>,
    /// Once something was changed.
    pub free: Option<Free>,
    /// It was marked as in use before it was opened.
    pub was_dirty: bool,
    /// It is marked as in use because of what was changed since.
    pub is_dirty: bool,
}

/// The number of a file whose entry is at a byte of the device.
fn number(at: u64, contiguous: bool) -> u64 {
    (at / ENTRY_BYTES) << 1 | u64::from(contiguous)
}

impl State {
    /// The number of the file whose first entry is at byte `at`.
    pub fn number(&self, at: u64, contiguous: bool) -> Inode {
        Inode(self.numbers.get(&at).copied().unwrap_or_else(|| number(at, contiguous)))
    }

    pub fn home(&self, inode: Inode) -> Home {
        match self.homes.get(&inode.0) {
            Some(home) => home.clone(),
            None if inode.0 >= FIRST_NEW => Home::Gone,
            None => Home::At((inode.0 >> 1).saturating_mul(ENTRY_BYTES), inode.0 & 1 == 1),
        }
    }

    /// A number for a file that is made at byte `at`.
    pub fn make(&mut self, at: u64, contiguous: bool) -> Inode {
        let inode = Inode(FIRST_NEW.saturating_add(self.made));
        self.made = self.made.saturating_add(1);
        self.homes.insert(inode.0, Home::At(at, contiguous));
        self.numbers.insert(at, inode.0);
        inode
    }

    fn leave(&mut self, inode: Inode) {
        if let Home::At(at, _) = self.home(inode)
            && self.numbers.get(&at).is_none_or(|number| *number == inode.0)
        {
            self.numbers.remove(&at);
        }
    }

    /// A file is at byte `at` now.
    pub fn go(&mut self, inode: Inode, at: u64, contiguous: bool) {
        self.leave(inode);
        self.homes.insert(inode.0, Home::At(at, contiguous));
        self.numbers.insert(at, inode.0);
    }

    /// A file has no name any more; `set` for one that is held.
    pub fn remove(&mut self, inode: Inode, set: Option<Set>) {
        self.leave(inode);
        match set {
            Some(set) => self.homes.insert(inode.0, Home::Removed(set)),
            // A number of a place is never the number of another file; new ones are not given out twice anyhow.
            None if inode.0 < FIRST_NEW && inode != ROOT => self.homes.insert(inode.0, Home::Gone),
            None => self.homes.remove(&inode.0),
        };
    }

    /// Changes what is known of a file without a name.
    pub fn update_removed(&mut self, inode: Inode, set: &Set) {
        if let Some(Home::Removed(old)) = self.homes.get_mut(&inode.0) {
            old.clone_from(set);
        }
    }
}
