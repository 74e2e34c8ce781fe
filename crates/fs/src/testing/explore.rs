//! Everything that a file system of a hostile image is asked, and what holds whatever the image says.

use std::ops::ControlFlow;

use crate::path::is_name;
use crate::walk::{Next, Order, Step, walk};
use crate::{Cursor, FileSystem, FileType, Inode, LINK_BYTES_MAX, NAME_BYTES_MAX, Stat, XATTR_BYTES_MAX};

/// How many files are looked at: an image of a few bytes may claim any number.
const FILES_MAX: usize = 2000;
/// How many entries of one directory are looked at.
const ENTRIES_MAX: usize = 2000;
/// How many extents of one file are looked at.
const EXTENTS_MAX: usize = 200;
/// How many attributes of one file are read.
const XATTRS_MAX: usize = 50;

/// What an exploration met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Met {
    /// Files that could be looked at.
    pub files: usize,
    /// Answers that were errors.
    pub errors: usize,
}

/// Walks over, lists, reads, and asks for all that is known, within limits. An error is a right answer.
///
/// # Panics
/// When an answer is none that [`FileSystem`] allows.
pub fn explore(fs: &dyn FileSystem) -> Met {
    let mut met = Met::default();
    let mut found = Vec::new();
    walk(fs, fs.root(), Order::Directory, &mut |step| {
        match step {
            Step::Enter(file) | Step::File(file) => found.push((file.inode, file.stat.clone())),
            Step::Failed { error, .. } => met.note::<()>(Err(error)),
            Step::Leave(_) => {}
        }
        if found.len() + met.errors < FILES_MAX { Next::Continue } else { Next::Stop }
    });
    met.files = found.len();
    for (inode, stat) in &found {
        match stat.file_type {
            FileType::Directory => met.directory(fs, *inode),
            FileType::Regular => met.content(fs, *inode, stat),
            FileType::SymbolicLink => {
                let target = fs.read_link(*inode);
                if let Ok(target) = &target {
                    assert!(!target.is_empty() && target.len() <= LINK_BYTES_MAX && !target.contains(&0), "{target:?}");
                }
                met.note(target);
            }
            _ => assert!(fs.read(*inode, &mut [0], 0).is_err(), "a {:?} that is read", stat.file_type),
        }
        met.xattrs(fs, *inode);
    }
    // Numbers that nobody gave out.
    for number in [0, 1, 3, 1 << 11, 1 << 32, u64::MAX].map(Inode) {
        met.note(fs.stat(number));
        met.note(fs.read(number, &mut [0; 100], 0));
    }
    assert!(fs.label().len() < 4096);
    met.note(fs.space());
    met
}

impl Met {
    fn note<T>(&mut self, answer: block::Result<T>) {
        if let Err(error) = answer {
            self.errors += 1;
            // What people will see.
            assert!(!error.to_string().is_empty());
        }
    }

    fn directory(&mut self, fs: &dyn FileSystem, inode: Inode) {
        let mut entries = Vec::new();
        let listed = fs.read_dir(inode, Cursor::START, &mut |entry| {
            assert!(is_name(entry.name) && entry.name.len() <= NAME_BYTES_MAX, "{:?}", entry.name);
            entries.push((entry.name.to_vec(), entry.next));
            if entries.len() < ENTRIES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        self.note(listed);
        // The first, the last and one between are looked up, and the directory is gone on with after them.
        for n in [0, entries.len() / 2, entries.len().saturating_sub(1)] {
            if let Some((name, next)) = entries.get(n) {
                self.note(fs.lookup(inode, name));
                self.note(fs.read_dir(inode, *next, &mut |_| ControlFlow::Break(())));
            }
        }
        self.note(fs.lookup(inode, b"no such name"));
    }

    fn content(&mut self, fs: &dyn FileSystem, inode: Inode, stat: &Stat) {
        let mut buf = [0; 9000];
        for offset in [0, 4095, stat.size / 2, stat.size.saturating_sub(100), stat.size, u64::MAX] {
            let read = fs.read(inode, &mut buf, offset);
            if let Ok(read) = read {
                assert!(read as u64 <= stat.size.saturating_sub(offset), "{read} bytes at {offset} of {}", stat.size);
            }
            self.note(read);
        }
        let mut at = 0;
        for _ in 0..EXTENTS_MAX {
            match fs.extent_at(inode, at) {
                Ok(Some(extent)) => {
                    assert!(extent.len > 0 && extent.len <= stat.size.saturating_sub(at), "{extent:?} at {at}");
                    at += extent.len;
                }
                Ok(None) => {
                    assert!(at >= stat.size, "the end of a file of {} bytes at {at}", stat.size);
                    break;
                }
                Err(error) => {
                    self.note::<()>(Err(error));
                    break;
                }
            }
        }
    }

    fn xattrs(&mut self, fs: &dyn FileSystem, inode: Inode) {
        let names = fs.xattrs(inode);
        for name in names.iter().flatten().take(XATTRS_MAX) {
            let value = fs.xattr(inode, name);
            if let Ok(value) = &value {
                assert!(value.len() <= XATTR_BYTES_MAX, "{} bytes", value.len());
            }
            self.note(value);
        }
        self.note(names);
    }
}
