//! Paths inside a file system, resolved as the kernel resolves them, and never on the host.
//!
//! A path is bytes: components between slashes. It starts at the root of the image, whether a slash leads it or not;
//! `..` of the root is the root, and a symbolic link, absolute or not, stays inside the image. What `path_resolution(7)`
//! says of trailing slashes, of links and of limits holds here too.

use std::fmt;

use block::{Error, Kind, Result};

use crate::{FileSystem, FileType, Inode, NAME_BYTES_MAX};

/// How many symbolic links one path may lead through: the kernel's MAXSYMLINKS.
pub const LINKS_MAX: usize = 40;
/// The longest path that is resolved, bytes: the kernel's PATH_MAX without its NUL.
pub const PATH_BYTES_MAX: usize = 4095;

/// Whether a symbolic link that is the last component of a path is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LastLink {
    /// It stands for what it points to, as in `open` and `stat`.
    Follow,
    /// It stands for itself, as in `lstat`; a slash after it makes it followed all the same.
    Keep,
}

/// The file that `path` names.
///
/// # Errors
/// [`Kind::NotFound`], [`Kind::NotDirectory`], [`Kind::Loop`] after [`LINKS_MAX`] links, [`Kind::NameTooLong`] above
/// [`PATH_BYTES_MAX`] or [`NAME_BYTES_MAX`]; the failures of the file system.
pub fn resolve(fs: &dyn FileSystem, path: &[u8], last: LastLink) -> Result<Inode> {
    if path.len() > PATH_BYTES_MAX {
        let text = format!("a path of {} bytes, the limit is {PATH_BYTES_MAX}", path.len());
        return Err(Error::new(Kind::NameTooLong, text));
    }
    let fail = |kind| Err(Error::new(kind, Printable(path).to_string()));
    // Directories from the root down to where we are; and what is still to be walked, the next component last.
    let mut ancestors = vec![fs.root()];
    let mut here = fs.root();
    let mut pending: Vec<Component> = Vec::new();
    push_components(&mut pending, path, path.ends_with(b"/") || last == LastLink::Follow);
    let mut must_be_directory = path.ends_with(b"/");
    let mut links: usize = 0;
    while let Some(Component { name, follow }) = pending.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                if ancestors.len() > 1 {
                    ancestors.pop();
                }
                here = ancestors.last().copied().unwrap_or_else(|| fs.root());
                continue;
            }
            _ => {}
        }
        if name.len() > NAME_BYTES_MAX {
            return fail(Kind::NameTooLong);
        }
        let Some(found) = fs.lookup(here, &name)? else { return fail(Kind::NotFound) };
        let file_type = fs.stat(found)?.file_type;
        if file_type == FileType::SymbolicLink && (follow || !pending.is_empty()) {
            links = links.saturating_add(1);
            if links > LINKS_MAX {
                return fail(Kind::Loop);
            }
            let target = fs.read_link(found)?;
            if target.is_empty() {
                return fail(Kind::NotFound);
            }
            if target.len() > PATH_BYTES_MAX {
                return fail(Kind::NameTooLong);
            }
            if target.starts_with(b"/") {
                ancestors.truncate(1);
                here = fs.root();
            }
            must_be_directory |= pending.is_empty() && target.ends_with(b"/");
            push_components(&mut pending, &target, true);
            continue;
        }
        if file_type == FileType::Directory {
            ancestors.push(found);
        } else if !pending.is_empty() || must_be_directory {
            return fail(Kind::NotDirectory);
        }
        here = found;
    }
    Ok(here)
}

/// A component that is still to be walked, and whether a link in its place is followed when it is the last.
struct Component {
    name: Vec<u8>,
    follow: bool,
}

fn push_components(pending: &mut Vec<Component>, path: &[u8], follow: bool) {
    let names = path.split(|byte| *byte == b'/').filter(|name| !name.is_empty());
    pending.extend(names.rev().map(|name| Component { name: name.to_vec(), follow }));
}

/// The last name of a path: what a copy of it is called. `None` for the root, `.` and `..`.
pub fn last_name(path: &[u8]) -> Option<&[u8]> {
    let name = path.split(|byte| *byte == b'/').rfind(|name| !name.is_empty())?;
    (name != b"." && name != b"..").then_some(name)
}

/// Whether `name` can stand for an entry of a directory: not empty, no slash, no NUL, neither `.` nor `..`, not too
/// long. File systems promise it; whoever writes to the host asks again.
pub fn is_name(name: &[u8]) -> bool {
    let special = name.is_empty() || name == b"." || name == b"..";
    !special && name.len() <= NAME_BYTES_MAX && !name.iter().any(|byte| matches!(byte, b'/' | 0))
}

/// A name or a path as it can be shown to people: what is not UTF-8, and what would move a cursor, as `\u{1b}`.
#[derive(Debug, Clone, Copy)]
pub struct Printable<'a>(pub &'a [u8]);

impl fmt::Display for Printable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write;
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    c if c.is_control() || is_direction(c) => write!(f, "{}", c.escape_default())?,
                    c => f.write_char(c)?,
                }
            }
            for byte in chunk.invalid() {
                write!(f, "\\x{byte:02x}")?;
            }
        }
        Ok(())
    }
}

/// Characters that turn the direction of text, and so make one name look like another.
fn is_direction(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::memory::Memory;

    fn tree() -> (Memory, Inode, Inode) {
        let mut memory = Memory::new();
        let etc = memory.directory(memory.root(), b"etc");
        let file = memory.file(etc, b"passwd", b"root");
        memory.symlink(memory.root(), b"absolute", b"/etc/passwd");
        memory.symlink(memory.root(), b"up", b"../../../etc/passwd");
        memory.symlink(etc, b"here", b".");
        memory.symlink(etc, b"loop", b"loop");
        memory.symlink(memory.root(), b"dir", b"etc");
        memory.symlink(memory.root(), b"slashed", b"etc/passwd/");
        memory.symlink(memory.root(), b"dangling", b"nowhere");
        (memory, etc, file)
    }

    #[test]
    fn paths_lead_where_the_kernel_goes() {
        let (memory, etc, file) = tree();
        let root = memory.root();
        for (path, inode) in [
            ("", root),
            ("/", root),
            (".", root),
            ("..", root),
            ("../..", root),
            ("etc", etc),
            ("/etc/", etc),
            ("//etc//.//", etc),
            ("etc/passwd", file),
            ("etc/../etc/passwd", file),
            ("dir/passwd", file),
            ("dir/..", root),
            ("absolute", file),
            ("up", file),
            ("dir/here/here/here/passwd", file),
            ("dir/", etc),
        ] {
            assert_eq!(resolve(&memory, path.as_bytes(), LastLink::Follow).unwrap(), inode, "{path}");
        }
    }

    #[test]
    fn what_cannot_be_resolved_has_the_errno_of_the_kernel() {
        let (memory, ..) = tree();
        let long_name = vec![b'a'; 256];
        let long_path = b"etc/".repeat(1024);
        for (path, kind) in [
            (b"etc/nothing".as_slice(), Kind::NotFound),
            (b"dangling", Kind::NotFound),
            (b"etc/passwd/", Kind::NotDirectory),
            (b"etc/passwd/x", Kind::NotDirectory),
            (b"etc/passwd/..", Kind::NotDirectory),
            (b"slashed", Kind::NotDirectory),
            (b"absolute/", Kind::NotDirectory),
            (b"etc/loop", Kind::Loop),
            (&long_name, Kind::NameTooLong),
            (&long_path, Kind::NameTooLong),
        ] {
            let error = resolve(&memory, path, LastLink::Follow).unwrap_err();
            assert_eq!(error.kind(), kind, "{}", Printable(path));
        }
    }

    #[test]
    fn a_last_link_is_kept_unless_a_slash_follows() {
        let (memory, etc, file) = tree();
        let kept = resolve(&memory, b"dir", LastLink::Keep).unwrap();
        assert_eq!(memory.stat(kept).unwrap().file_type, FileType::SymbolicLink);
        assert_eq!(resolve(&memory, b"dir/", LastLink::Keep).unwrap(), etc);
        assert_eq!(resolve(&memory, b"dir/passwd", LastLink::Keep).unwrap(), file);
        assert!(resolve(&memory, b"dangling", LastLink::Keep).is_ok());
        assert!(resolve(&memory, b"etc/loop", LastLink::Keep).is_ok());
    }

    #[test]
    fn forty_links_are_followed_and_one_more_is_not() {
        let mut memory = Memory::new();
        let root = memory.root();
        let end = memory.file(root, b"0", b"");
        for n in 1..=41 {
            memory.symlink(root, format!("{n}").as_bytes(), format!("{}", n - 1).as_bytes());
        }
        assert_eq!(resolve(&memory, b"40", LastLink::Follow).unwrap(), end);
        assert_eq!(resolve(&memory, b"41", LastLink::Follow).unwrap_err().kind(), Kind::Loop);
    }

    #[test]
    fn names_are_shown_without_harm() {
        assert_eq!(Printable(b"a\x1b[31m\xff\n").to_string(), "a\\u{1b}[31m\\xff\\n");
        assert_eq!(Printable("ä\u{202e}txt".as_bytes()).to_string(), "ä\\u{202e}txt");
        for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
            assert!(!is_name(name));
        }
        assert!(is_name(b"...") && is_name(&[b'a'; 255]) && is_name(b"\xff"));
        assert_eq!(last_name(b"/a/b/"), Some(b"b".as_slice()));
        assert_eq!((last_name(b"/"), last_name(b"a/.."), last_name(b"a/.")), (None, None, None));
    }
}
