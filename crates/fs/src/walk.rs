//! A tree, visited depth first.
//!
//! Images are hostile: a directory may be its own child, two directories may share one, so that a naive walk takes
//! forever or visits 2^n files. A directory is entered once; a second time is an error of [`Kind::Loop`], said to the
//! visitor like every other error, and the walk goes on beside it.

use std::collections::HashSet;
use std::ops::ControlFlow;

use block::{Error, Kind, Result};

use crate::path::{Printable, is_name};
use crate::{Cursor, FileSystem, FileType, Inode, Stat};

/// How many directories may lie inside each other.
pub const DEPTH_MAX: usize = 4096;
/// The longest path, from where the walk starts, that is visited, bytes.
pub const PATH_BYTES_MAX: usize = 65_536;
/// How many entries of a directory are fetched at one time, where its own order is kept.
const BATCH_ENTRIES: usize = 1024;

/// The order of the entries of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// As the directory has them: fewest reads, least memory.
    Directory,
    /// By the bytes of the names: the same for every image that holds the same tree.
    Name,
}

/// A file that the walk found.
#[derive(Debug, Clone, Copy)]
pub struct Found<'a> {
    /// Its path from where the walk started; empty there.
    pub path: &'a [u8],
    /// Its name: the last part of the path; empty where the walk started.
    pub name: &'a [u8],
    /// How many directories above it belong to the walk.
    pub depth: usize,
    /// The file.
    pub inode: Inode,
    /// What is known of it.
    pub stat: &'a Stat,
}

/// What a walk shows.
#[derive(Debug)]
pub enum Step<'a> {
    /// A directory, before what is in it. [`Next::Skip`] leaves out what is in it, and its [`Step::Leave`].
    Enter(Found<'a>),
    /// A file of any other type.
    File(Found<'a>),
    /// The directory again, after what is in it.
    Leave(Found<'a>),
    /// What could not be read: a file, or (the rest of) a directory. The walk goes on with what is beside it.
    Failed {
        /// Its path from where the walk started.
        path: &'a [u8],
        /// Why.
        error: Error,
    },
}

/// What a visitor wants next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// On.
    Continue,
    /// Not into this directory.
    Skip,
    /// The end.
    Stop,
}

/// An entry that is still to be visited.
struct Pending {
    name: Box<[u8]>,
    inode: Inode,
}

/// A directory that the walk is in.
struct Level {
    inode: Inode,
    stat: Stat,
    path_len: usize,
    name_start: usize,
    /// The next ones, in reverse.
    pending: Vec<Pending>,
    /// Where to go on, when `pending` is empty; `None` at the end.
    cursor: Option<Cursor>,
}

/// Visits `start` and, where it is a directory, all below it. Symbolic links are not followed.
pub fn walk(fs: &dyn FileSystem, start: Inode, order: Order, visit: &mut dyn FnMut(Step<'_>) -> Next) {
    let mut walk = Walk { fs, order, visit, levels: Vec::new(), path: Vec::new(), directories: HashSet::new() };
    if walk.show(start, 0) == Next::Stop {
        return;
    }
    while !walk.levels.is_empty() {
        if walk.step() == Next::Stop {
            return;
        }
    }
}

struct Walk<'a> {
    fs: &'a dyn FileSystem,
    order: Order,
    visit: &'a mut dyn FnMut(Step<'_>) -> Next,
    levels: Vec<Level>,
    path: Vec<u8>,
    /// Numbers of the directories that were entered.
    directories: HashSet<u64>,
}

impl Walk<'_> {
    /// Shows the file whose path is in `self.path`, and enters it where it is a directory.
    fn show(&mut self, inode: Inode, name_start: usize) -> Next {
        let stat = match self.fs.stat(inode) {
            Ok(stat) => stat,
            Err(error) => return self.failed(error),
        };
        let depth = self.levels.len();
        let name = self.path.get(name_start..).unwrap_or_default();
        let found = Found { path: &self.path, name, depth, inode, stat: &stat };
        if stat.file_type != FileType::Directory {
            return (self.visit)(Step::File(found));
        }
        if depth >= DEPTH_MAX {
            let text = format!("a directory inside {depth} others, the limit is {DEPTH_MAX}");
            return self.failed(Error::new(Kind::Limit, text));
        }
        if !self.directories.insert(stat.number) {
            let text = format!("a directory that is also elsewhere in the tree (inode {})", stat.number);
            return self.failed(Error::new(Kind::Loop, text));
        }
        let next = (self.visit)(Step::Enter(found));
        if next == Next::Continue {
            let (path_len, cursor) = (self.path.len(), Some(Cursor::START));
            self.levels.push(Level { inode, stat, path_len, name_start, pending: Vec::new(), cursor });
        }
        next
    }

    /// The next entry of the innermost directory, or its end.
    fn step(&mut self) -> Next {
        let Some(level) = self.levels.last_mut() else { return Next::Stop };
        self.path.truncate(level.path_len);
        if level.pending.is_empty()
            && let Some(from) = level.cursor
        {
            let (batch, next, outcome) = fetch(self.fs, level.inode, from, self.order);
            level.pending = batch;
            level.cursor = next;
            if let Err(error) = outcome {
                return self.failed(error);
            }
        }
        let Some(Pending { name, inode }) = level.pending.pop() else {
            return if level.cursor.is_none() { self.leave() } else { Next::Continue };
        };
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        let name_start = self.path.len();
        self.path.extend_from_slice(&name);
        if !is_name(&name) {
            return self
                .failed(Error::new(Kind::Corrupt, format!("an entry named {:?}", Printable(&name).to_string())));
        }
        if self.path.len() > PATH_BYTES_MAX {
            let text = format!("a path of {} bytes, the limit is {PATH_BYTES_MAX}", self.path.len());
            return self.failed(Error::new(Kind::Limit, text));
        }
        match self.show(inode, name_start) {
            Next::Stop => Next::Stop,
            Next::Continue | Next::Skip => Next::Continue,
        }
    }

    fn leave(&mut self) -> Next {
        let Some(level) = self.levels.pop() else { return Next::Stop };
        let name = self.path.get(level.name_start..).unwrap_or_default();
        let (depth, inode, stat) = (self.levels.len(), level.inode, &level.stat);
        (self.visit)(Step::Leave(Found { path: &self.path, name, depth, inode, stat }))
    }

    fn failed(&mut self, error: Error) -> Next {
        match (self.visit)(Step::Failed { path: &self.path, error }) {
            Next::Stop => Next::Stop,
            Next::Continue | Next::Skip => Next::Continue,
        }
    }
}

/// Entries from `from` on, the first one last; where to go on; and how it went.
fn fetch(
    fs: &dyn FileSystem,
    directory: Inode,
    from: Cursor,
    order: Order,
) -> (Vec<Pending>, Option<Cursor>, Result<()>) {
    let most = if order == Order::Name { usize::MAX } else { BATCH_ENTRIES };
    let mut batch = Vec::new();
    let mut next = None;
    let outcome = fs.read_dir(directory, from, &mut |entry| {
        batch.push(Pending { name: entry.name.into(), inode: entry.inode });
        if batch.len() < most {
            return ControlFlow::Continue(());
        }
        next = Some(entry.next);
        ControlFlow::Break(())
    });
    match order {
        Order::Name => batch.sort_by(|a, b| b.name.cmp(&a.name)),
        Order::Directory => batch.reverse(),
    }
    // After an error, there is no place to go on from.
    (batch, next.filter(|_| outcome.is_ok()), outcome)
}

/// The entries of one directory, by name or in its own order.
///
/// # Errors
/// Those of [`FileSystem::read_dir`].
pub fn entries(fs: &dyn FileSystem, directory: Inode, order: Order) -> Result<Vec<(Box<[u8]>, Inode)>> {
    let mut entries = Vec::new();
    fs.read_dir(directory, Cursor::START, &mut |entry| {
        entries.push((Box::from(entry.name), entry.inode));
        ControlFlow::Continue(())
    })?;
    if order == Order::Name {
        entries.sort();
    }
    Ok(entries)
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use super::*;
    use crate::testing::memory::Memory;

    fn trace(fs: &dyn FileSystem, order: Order) -> Vec<String> {
        let mut lines = Vec::new();
        walk(fs, fs.root(), order, &mut |step| {
            let (word, path) = match &step {
                Step::Enter(found) => ("enter", found.path),
                Step::File(found) => ("file", found.path),
                Step::Leave(found) => ("leave", found.path),
                Step::Failed { path, error } => {
                    lines.push(format!("{:?} {}", error.kind(), Printable(path)));
                    return Next::Continue;
                }
            };
            lines.push(format!("{word} {}", Printable(path)));
            Next::Continue
        });
        lines
    }

    #[test]
    fn depth_first_in_either_order() {
        let mut memory = Memory::new();
        let root = memory.root();
        let b = memory.directory(root, b"b");
        memory.file(b, b"2", b"");
        memory.file(b, b"1", b"");
        memory.symlink(root, b"a", b"b");
        let own = trace(&memory, Order::Directory);
        assert_eq!(own, ["enter ", "enter b", "file b/2", "file b/1", "leave b", "file a", "leave "]);
        let named = trace(&memory, Order::Name);
        assert_eq!(named, ["enter ", "file a", "enter b", "file b/1", "file b/2", "leave b", "leave "]);
    }

    #[test]
    fn a_directory_inside_itself_is_said_once_and_left() {
        let mut memory = Memory::new();
        let root = memory.root();
        let a = memory.directory(root, b"a");
        memory.link(a, b"self", a);
        memory.link(a, b"up", root);
        memory.file(a, b"z", b"");
        let lines = trace(&memory, Order::Directory);
        assert_eq!(lines, ["enter ", "enter a", "Loop a/self", "Loop a/up", "file a/z", "leave a", "leave "]);
    }

    #[test]
    fn shared_directories_do_not_explode() {
        let mut memory = Memory::new();
        let mut above = memory.root();
        for _ in 0..200 {
            let below = memory.directory(above, b"1");
            for n in 2..9 {
                memory.link(above, format!("{n}").as_bytes(), below);
            }
            above = below;
        }
        assert!(trace(&memory, Order::Directory).len() < 2 * 200 + 200 * 8 + 10);
    }

    #[test]
    fn a_tree_of_ten_thousand_levels_ends_at_the_limit() {
        let mut memory = Memory::new();
        let mut above = memory.root();
        for _ in 0..10_000 {
            above = memory.directory(above, b"d");
        }
        let lines = trace(&memory, Order::Directory);
        assert_eq!(lines.len(), 2 * DEPTH_MAX + 1);
        assert!(lines.iter().any(|line| line.starts_with("Limit d/d/")));
        let mut memory = Memory::new();
        let mut above = memory.root();
        for _ in 0..300 {
            above = memory.directory(above, &[b'n'; 255]);
        }
        let lines = trace(&memory, Order::Name);
        assert_eq!(lines.iter().filter(|line| line.starts_with("Limit")).count(), 1);
    }

    #[test]
    fn batches_join_without_a_seam() {
        let mut memory = Memory::new();
        for n in 0..2 * BATCH_ENTRIES {
            memory.file(memory.root(), format!("{n}").as_bytes(), b"");
        }
        let mut names = Vec::new();
        walk(&memory, memory.root(), Order::Directory, &mut |step| {
            if let Step::File(found) = step {
                names.push(String::from_utf8(found.name.to_vec()).unwrap());
            }
            Next::Continue
        });
        let expected: Vec<_> = (0..2 * BATCH_ENTRIES).map(|n| n.to_string()).collect();
        assert_eq!(names, expected);
    }

    #[test]
    fn what_no_directory_may_hold_is_refused() {
        let mut memory = Memory::new();
        for name in [b"a/b".as_slice(), b"..", b"", b"x\0"] {
            memory.file(memory.root(), name, b"");
        }
        memory.node_mut(Inode(1)).entries.push((b"gone".to_vec(), Inode(999)));
        let lines = trace(&memory, Order::Directory);
        assert_eq!(lines.iter().filter(|line| line.starts_with("Corrupt")).count(), 4);
        assert_eq!(lines.iter().filter(|line| line.starts_with("NotFound gone")).count(), 1);
    }
}
