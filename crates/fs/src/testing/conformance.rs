//! The promises of [`FileSystem`], checked over a whole tree.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;

use block::{Kind, Source};

use crate::path::{Printable, is_name};
use crate::{Cursor, FileSystem, FileType, Inode, LINK_BYTES_MAX, Stat, XATTR_BYTES_MAX};

/// How many bytes of each file are compared between its extents and its content.
const COMPARED_BYTES_MAX: u64 = 8 << 20;
/// How many extents of one file are looked at.
const EXTENTS_MAX: usize = 100_000;
/// Up to this many entries, a directory is read again from each of its cursors.
const CURSORS_MAX: usize = 300;

/// An entry as it was given out.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Listed {
    name: Vec<u8>,
    inode: Inode,
    file_type: Option<FileType>,
    next: Cursor,
}

/// Checks every promise of [`FileSystem`] on every file below the root. Meant for sound images of up to some thousand
/// files; a fuzz target of broken ones cannot use it, because there an error is a right answer.
///
/// # Panics
/// When a promise is not kept.
pub fn check(fs: &dyn FileSystem) {
    assert!(!fs.name().is_empty(), "a file system has a name");
    let root = fs.stat(fs.root()).expect("stat of the root");
    assert_eq!(root.file_type, FileType::Directory, "the root is a directory");
    let space = fs.space().expect("space");
    assert!(space.block_bytes > 0 && space.blocks_free <= space.blocks && space.files_free <= space.files, "{space:?}");
    let mut pending = vec![(fs.root(), b"/".to_vec(), 0_usize)];
    let mut directories = HashSet::new();
    let mut by_number: HashMap<u64, Stat> = HashMap::new();
    while let Some((inode, path, depth)) = pending.pop() {
        let stat = fs.stat(inode).unwrap_or_else(|error| panic!("stat of {}: {error:?}", Printable(&path)));
        check_stat(&path, &stat);
        if let Some(other) = by_number.insert(stat.number, stat.clone()) {
            assert_eq!(other, stat, "{}: one number, two files", Printable(&path));
        }
        check_xattrs(fs, inode, &path);
        match stat.file_type {
            FileType::Directory => {
                assert!(directories.insert(stat.number), "{}: a directory with two names", Printable(&path));
                assert!(depth < crate::walk::DEPTH_MAX, "{}: too deep", Printable(&path));
                for entry in check_directory(fs, inode, &path) {
                    let mut child = path.clone();
                    if depth > 0 {
                        child.push(b'/');
                    }
                    child.extend_from_slice(&entry.name);
                    if let Some(file_type) = entry.file_type {
                        let found = fs.stat(entry.inode).expect("stat of an entry").file_type;
                        assert_eq!(file_type, found, "{}: type in the directory and in stat", Printable(&child));
                    }
                    pending.push((entry.inode, child, depth + 1));
                }
                let mut byte = [0];
                assert_eq!(fs.read(inode, &mut byte, 0).map_err(|e| e.kind()), Err(Kind::IsDirectory));
                assert!(fs.read_link(inode).is_err(), "{}: a directory has no target", Printable(&path));
            }
            FileType::Regular => check_content(fs, inode, &path, &stat),
            FileType::SymbolicLink => check_link(fs, inode, &path, &stat),
            _ => {
                let mut byte = [0];
                assert!(fs.read(inode, &mut byte, 0).is_err(), "{}: no regular file, and read", Printable(&path));
            }
        }
        if stat.file_type != FileType::Directory {
            assert_eq!(fs.lookup(inode, b"x").map_err(|e| e.kind()), Err(Kind::NotDirectory), "{}", Printable(&path));
            let answer = fs.read_dir(inode, Cursor::START, &mut |_| ControlFlow::Continue(()));
            assert_eq!(answer.map_err(|e| e.kind()), Err(Kind::NotDirectory), "{}", Printable(&path));
        }
    }
    check_strangers(fs);
}

fn check_stat(path: &[u8], stat: &Stat) {
    let path = Printable(path);
    assert_ne!(stat.number, 0, "{path}: number 0");
    assert_eq!(stat.permissions & !0o7777, 0, "{path}: permissions {:o}", stat.permissions);
    assert!(stat.links >= 1, "{path}: no link");
    for time in [Some(stat.accessed), Some(stat.modified), Some(stat.changed), stat.created].into_iter().flatten() {
        assert!(time.nanoseconds < 1_000_000_000, "{path}: {time:?}");
    }
    let device = matches!(stat.file_type, FileType::BlockDevice | FileType::CharacterDevice);
    assert_eq!(stat.device.is_some(), device, "{path}: a device number belongs to a device");
}

fn list(fs: &dyn FileSystem, inode: Inode, from: Cursor, most: usize, path: &[u8]) -> Vec<Listed> {
    let mut entries = Vec::new();
    let visit = &mut |entry: crate::Entry<'_>| {
        assert!(entries.len() < most, "{}: visited after the visitor broke off", Printable(path));
        entries.push(Listed {
            name: entry.name.to_vec(),
            inode: entry.inode,
            file_type: entry.file_type,
            next: entry.next,
        });
        if entries.len() == most { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    fs.read_dir(inode, from, visit).unwrap_or_else(|error| panic!("entries of {}: {error:?}", Printable(path)));
    entries
}

fn check_directory(fs: &dyn FileSystem, inode: Inode, path: &[u8]) -> Vec<Listed> {
    let entries = list(fs, inode, Cursor::START, usize::MAX, path);
    let shown = Printable(path);
    let mut names = HashSet::new();
    for entry in &entries {
        assert!(is_name(&entry.name), "{shown}: {:?} is no name", Printable(&entry.name));
        assert!(names.insert(&entry.name), "{shown}: {} twice", Printable(&entry.name));
        assert_ne!(entry.next, Cursor::START, "{shown}: the cursor after an entry is not the start");
        let found = fs.lookup(inode, &entry.name).expect("lookup of a listed name");
        assert_eq!(found, Some(entry.inode), "{shown}: {} listed and looked up", Printable(&entry.name));
    }
    // From every cursor on, the rest and nothing else; the number of cursors tried is bounded, the work is quadratic.
    let step = entries.len().div_ceil(CURSORS_MAX).max(1);
    for (index, entry) in entries.iter().enumerate().step_by(step) {
        let rest = list(fs, inode, entry.next, usize::MAX, path);
        assert_eq!(rest, entries[index + 1..], "{shown}: after {}", Printable(&entry.name));
    }
    // In small pieces, the whole.
    let (mut pieces, mut from) = (Vec::new(), Cursor::START);
    loop {
        let piece = list(fs, inode, from, 3, path);
        let Some(last) = piece.last() else { break };
        from = last.next;
        pieces.extend(piece);
        assert!(pieces.len() <= entries.len(), "{shown}: more entries in pieces than at once");
    }
    assert_eq!(pieces, entries, "{shown}: in pieces");
    let absent: [&[u8]; 6] = [b"", b"\xff no such name \xff", b"a/b", &[b'x'; 255], &[b'x'; 256], &[b'x'; 5000]];
    for name in absent.into_iter().filter(|name| !names.contains(&name.to_vec())) {
        match fs.lookup(inode, name) {
            Ok(found) => assert_eq!(found, None, "{shown}: {} is found", Printable(name)),
            Err(error) => assert!(
                matches!(error.kind(), Kind::NameTooLong | Kind::Invalid | Kind::NotFound),
                "{shown}: {} is {error:?}",
                Printable(name)
            ),
        }
    }
    entries
}

fn check_content(fs: &dyn FileSystem, inode: Inode, path: &[u8], stat: &Stat) {
    let path = Printable(path);
    let size = stat.size;
    let compared = size.min(COMPARED_BYTES_MAX);
    let mut whole = vec![0xa5; compared as usize];
    let read = fs.read(inode, &mut whole, 0).unwrap_or_else(|error| panic!("{path}: {error:?}"));
    assert_eq!(read as u64, compared, "{path}: bytes read of {size}");
    check_reads(fs, inode, path, size, &whole);
    let mut at = 0_u64;
    for _ in 0..EXTENTS_MAX {
        let Some(extent) = fs.extent_at(inode, at).unwrap_or_else(|error| panic!("{path} at {at}: {error:?}")) else {
            break;
        };
        assert!(at < size, "{path}: an extent at {at}, behind the end at {size}");
        assert!(extent.len >= 1 && extent.len <= size - at, "{path}: {} bytes at {at} of {size}", extent.len);
        let (first, last) = (at.min(compared) as usize, (at + extent.len).min(compared) as usize);
        let content = &whole[first..last];
        match extent.source {
            Source::Hole | Source::Zero => {
                assert!(content.iter().all(|byte| *byte == 0), "{path}: a hole at {at} that is not zero");
            }
            Source::Data => {}
            Source::File { fd, offset } => {
                let mut bytes = vec![0; content.len()];
                let mut done = 0;
                while done < bytes.len() {
                    let n = rustix::io::pread(fd, &mut bytes[done..], offset + done as u64).expect("read of the file");
                    assert_ne!(n, 0, "{path}: the file of the extent at {at} ends early");
                    done += n;
                }
                assert!(bytes == content, "{path}: the file of the extent at {at} holds other bytes");
            }
        }
        // From the middle of an extent, the rest of the same.
        if extent.len > 2 {
            let middle = at + extent.len / 2;
            let rest = fs.extent_at(inode, middle).expect("extent").expect("extent inside the file");
            match (extent.source, rest.source) {
                (Source::File { offset, .. }, Source::File { offset: later, .. }) => {
                    assert_eq!(offset + (middle - at), later, "{path}: the extent at {at}, from its middle");
                }
                (one, other) => assert_eq!(
                    std::mem::discriminant(&one),
                    std::mem::discriminant(&other),
                    "{path}: the extent at {at}, from its middle"
                ),
            }
        }
        at += extent.len;
    }
    assert_eq!(at, size, "{path}: extents do not cover the file");
    for offset in [size, size.saturating_add(1), u64::MAX] {
        assert!(fs.extent_at(inode, offset).expect("behind the end").is_none(), "{path}: an extent at {offset}");
    }
}

fn check_reads(fs: &dyn FileSystem, inode: Inode, path: Printable<'_>, size: u64, whole: &[u8]) {
    let edges = [0, 1, 511, 512, 1023, 1024, 2047, 2048, 4095, 4096, 4097, 65_535, 65_536, size / 2, size / 3];
    let ends = [size.saturating_sub(1), size.saturating_sub(4096), size, size.saturating_add(1), 1 << 40, u64::MAX];
    for offset in edges.into_iter().chain(ends) {
        for len in [0, 1, 3, 512, 2048, 5000, 70_000_usize] {
            let mut buf = vec![0x5a; len];
            let read = fs.read(inode, &mut buf, offset).unwrap_or_else(|e| panic!("{path} at {offset}: {e:?}"));
            let expected = (len as u64).min(size.saturating_sub(offset));
            assert_eq!(read as u64, expected, "{path}: {len} bytes at {offset} of {size}");
            if let Some(content) = whole.get(offset as usize..(offset as usize).saturating_add(read)) {
                assert!(&buf[..read] == content, "{path}: {len} bytes at {offset} differ from the whole");
            }
            assert!(buf[read..].iter().all(|byte| *byte == 0x5a), "{path}: written behind what was read, at {offset}");
        }
    }
    assert_eq!(fs.read_link(inode).map_err(|e| e.kind()), Err(Kind::Invalid), "{path}: a target of a regular file");
}

fn check_link(fs: &dyn FileSystem, inode: Inode, path: &[u8], stat: &Stat) {
    let path = Printable(path);
    let target = fs.read_link(inode).unwrap_or_else(|error| panic!("{path}: {error:?}"));
    assert!(!target.is_empty() && target.len() <= LINK_BYTES_MAX, "{path}: a target of {} bytes", target.len());
    assert!(!target.contains(&0), "{path}: a NUL in the target");
    assert_eq!(target.len() as u64, stat.size, "{path}: size of a link and length of its target");
    let mut byte = [0];
    assert_eq!(fs.read(inode, &mut byte, 0).map_err(|e| e.kind()), Err(Kind::Invalid), "{path}: read of a link");
}

fn check_xattrs(fs: &dyn FileSystem, inode: Inode, path: &[u8]) {
    let path = Printable(path);
    let names = fs.xattrs(inode).unwrap_or_else(|error| panic!("attributes of {path}: {error:?}"));
    let mut seen = HashSet::new();
    for name in &names {
        assert!(!name.is_empty() && name.len() <= 255 && !name.contains(&0), "{path}: {:?}", Printable(name));
        assert!(seen.insert(name), "{path}: {} twice", Printable(name));
        assert!(name.contains(&b'.'), "{path}: {} has no prefix", Printable(name));
        let value = fs.xattr(inode, name).unwrap_or_else(|e| panic!("{path}: {}: {e:?}", Printable(name)));
        assert!(value.len() <= XATTR_BYTES_MAX, "{path}: {} of {} bytes", Printable(name), value.len());
    }
    for absent in [b"user.\xff no such attribute".as_slice(), b"", b"user.", b"nothing"] {
        if !names.iter().any(|name| name == absent) {
            let kind = fs.xattr(inode, absent).map_err(|error| error.kind());
            assert_eq!(kind, Err(Kind::NoAttribute), "{path}: {}", Printable(absent));
        }
    }
}

/// Inodes and cursors that were never given out: an answer or an error, and no panic.
fn check_strangers(fs: &dyn FileSystem) {
    let root = fs.root();
    let near = (0..64).flat_map(|n| [root.0.wrapping_add(n), root.0.wrapping_sub(n), n, u64::MAX - n]);
    let far = (0..64).map(|n| 1_u64 << n);
    for inode in near.chain(far).map(Inode) {
        let mut buf = [0; 100];
        let _ = fs.stat(inode);
        let _ = fs.lookup(inode, b"name");
        let _ = fs.read(inode, &mut buf, 0);
        let _ = fs.read(inode, &mut buf, u64::MAX);
        let _ = fs.extent_at(inode, 0);
        let _ = fs.extent_at(inode, u64::MAX);
        let _ = fs.read_link(inode);
        let _ = fs.xattrs(inode);
        let _ = fs.xattr(inode, b"user.name");
        let mut seen = 0;
        let _ = fs.read_dir(inode, Cursor::START, &mut |_| {
            seen += 1;
            if seen > 1000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
    for cursor in [1, 2, 3, 1 << 20, 1 << 40, u64::MAX].map(Cursor) {
        let mut seen = 0_u64;
        let _ = fs.read_dir(root, cursor, &mut |_| {
            seen += 1;
            if seen > 1_000_000 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory::{Memory, Run, Stored};

    fn sound() -> Memory {
        let mut memory = Memory::new();
        let root = memory.root();
        let inner = memory.directory(root, b"inner");
        let file = memory.file(inner, b"file", b"content");
        memory.link(root, b"linked", file);
        memory.node_mut(file).xattrs.push((b"user.a".to_vec(), b"1".to_vec()));
        memory.symlink(root, b"symlink", b"inner/file");
        memory.special(root, b"null", FileType::CharacterDevice, Some((1, 3)));
        memory.special(root, b"pipe", FileType::Fifo, None);
        memory.sparse(root, b"sparse", 1 << 20, vec![Run { start: 4096, stored: Stored::Bytes(vec![7; 5000]) }]);
        for n in 0..40 {
            memory.file(inner, format!("{n}").as_bytes(), &vec![n; usize::from(n) * 1000]);
        }
        memory
    }

    #[test]
    fn a_sound_file_system_passes() {
        check(&sound());
    }

    /// Each of these breaks one promise, and the suite must see it.
    #[test]
    fn broken_promises_are_seen() {
        let breaks: [fn(&mut Memory); 8] = [
            |memory| {
                memory.file(Inode(1), b"a/b", b"");
            },
            |memory| {
                memory.file(Inode(1), b"inner", b"");
            },
            |memory| memory.link(Inode(2), b"loop", Inode(1)),
            |memory| memory.node_mut(Inode(3)).stat.number = 1,
            |memory| memory.node_mut(Inode(3)).stat.modified.nanoseconds = 1_000_000_000,
            |memory| memory.node_mut(Inode(4)).target.clear(),
            |memory| memory.node_mut(Inode(3)).broken_from = Some(0),
            |memory| memory.node_mut(Inode(3)).xattrs.push((b"user.a".to_vec(), Vec::new())),
        ];
        for (index, change) in breaks.into_iter().enumerate() {
            let mut memory = sound();
            change(&mut memory);
            let seen = std::panic::catch_unwind(|| check(&memory)).is_err();
            assert!(seen, "break {index} went unseen");
        }
    }
}
