//! A request's path becomes a file below the folder that is served, and never one outside: the kernel resolves it
//! beneath the folder (`openat2`, `RESOLVE_BENEATH`), so that neither `..` nor a link leads out, whatever changes while
//! it looks.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use rustix::fs::{Mode, OFlags, ResolveFlags, openat, openat2};
use rustix::io::Errno;

/// All but what stands in a path as it is (RFC 3986 section 3.3: pchar without sub-delims, which HTML wants quoted).
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~').remove(b'@');

/// The names in a request's path, decoded, with `.` and `..` taken away as RFC 3986 section 5.2.4 has it; and whether it
/// ends with a slash. `None` for what names no file: NUL, or a slash inside a name.
pub fn decode(path: &str) -> Option<(Vec<OsString>, bool)> {
    let mut names: Vec<OsString> = Vec::new();
    for segment in path.split('/') {
        match percent_decode_str(segment).collect::<Vec<u8>>() {
            name if name.is_empty() || name == b"." => {}
            name if name == b".." => drop(names.pop()),
            name if name.contains(&0) || name.contains(&b'/') => return None,
            name => names.push(OsString::from_vec(name)),
        }
    }
    let last = path.rsplit('/').next().map(|segment| percent_decode_str(segment).collect::<Vec<u8>>());
    let folder = last.is_none_or(|last| matches!(last.as_slice(), b"" | b"." | b".."));
    Some((names, folder))
}

/// A name as it stands in a URL.
pub fn encode(name: &OsStr) -> String {
    percent_encode(name.as_bytes(), SEGMENT).to_string()
}

/// Names as the path of a URL, from the root on.
pub fn encode_all(names: &[OsString]) -> String {
    names.iter().map(|name| format!("/{}", encode(name))).collect()
}

/// A folder from which nothing leads out.
#[derive(Debug)]
pub struct Root {
    folder: OwnedFd,
    /// Whether links may lead out after all.
    follow_links: bool,
}

impl Root {
    /// Opens the folder.
    pub fn open(path: &Path, follow_links: bool) -> std::io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { folder: rustix::fs::open(path, flags, Mode::empty())?, follow_links })
    }

    /// Opens what the names lead to: a file or a folder, nothing else. Devices and pipes are not opened at all.
    pub fn find(&self, names: &[OsString]) -> std::io::Result<File> {
        let path = match names {
            [] => OsString::from("."),
            names => names.join(OsStr::new("/")),
        };
        let seen = File::from(self.resolve(&path, OFlags::PATH)?).metadata()?;
        if !seen.is_file() && !seen.is_dir() {
            return Err(Errno::ACCESS.into());
        }
        // Should it have become a pipe meanwhile, nothing waits for its other end.
        let file = File::from(self.resolve(&path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY)?);
        let kind = file.metadata()?;
        if kind.is_file() || kind.is_dir() { Ok(file) } else { Err(Errno::ACCESS.into()) }
    }

    fn resolve(&self, path: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let flags = flags | OFlags::CLOEXEC;
        if self.follow_links {
            return openat(&self.folder, path, flags, Mode::empty());
        }
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
        for _ in 0..16 {
            match openat2(&self.folder, path, flags, Mode::empty(), beneath) {
                // Something was renamed while it looked.
                Err(Errno::AGAIN | Errno::INTR) => {}
                // A kernel before 5.6, or one that forbids it.
                Err(Errno::NOSYS | Errno::PERM) => return self.walk(path, flags),
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }

    /// The same name by name, following no link at all.
    fn walk(&self, path: &OsStr, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let names: Vec<&[u8]> = path.as_bytes().split(|byte| *byte == b'/').collect();
        let mut at = self.folder.try_clone().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        let step = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let (last, before) = names.split_last().ok_or(Errno::NOENT)?;
        for name in before {
            at = openat(&at, *name, step | OFlags::NOFOLLOW, Mode::empty())?;
        }
        let found = openat(&at, *last, flags | OFlags::NOFOLLOW, Mode::empty())?;
        let is_link = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode).is_symlink();
        if is_link { Err(Errno::LOOP) } else { Ok(found) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn names_are_decoded_and_cannot_climb() {
        let decoded = |path: &str| {
            decode(path).map(|(names, folder)| {
                (names.iter().map(|name| name.to_string_lossy().into_owned()).collect::<Vec<_>>().join("|"), folder)
            })
        };
        let is = |names: &str, folder| Some((names.to_owned(), folder));
        assert_eq!(decoded("/"), is("", true));
        assert_eq!(decoded("/a/b"), is("a|b", false));
        assert_eq!(decoded("/a%20b/%C3%BC/"), is("a b|ü", true));
        assert_eq!(decoded("//a//./b/.."), is("a", true));
        assert_eq!(decoded("/../../etc/passwd"), is("etc|passwd", false));
        assert_eq!(decoded("/%2e%2e/%2e%2E/x"), is("x", false));
        assert_eq!(decoded("/a%2fb"), None);
        assert_eq!(decoded("/a%00"), None);
        assert_eq!(encode(OsStr::new("a b&c\"<ü>.txt")), "a%20b%26c%22%3C%C3%BC%3E.txt");
    }

    #[test]
    fn nothing_leads_out() {
        let folder = tempfile::tempdir().unwrap();
        let (inside, outside) = (folder.path().join("in"), folder.path().join("out"));
        std::fs::create_dir_all(inside.join("sub")).unwrap();
        std::fs::write(inside.join("sub/file"), "x").unwrap();
        std::fs::write(&outside, "secret").unwrap();
        symlink("sub/file", inside.join("near")).unwrap();
        symlink("../out", inside.join("far")).unwrap();
        symlink(&outside, inside.join("absolute")).unwrap();
        symlink("/proc/self/root/etc", inside.join("proc")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, inside.join("pipe"), rustix::fs::FileType::Fifo, 0o666.into(), 0).unwrap();
        let root = Root::open(&inside, false).unwrap();
        let find = |root: &Root, names: &[&str]| {
            root.find(&names.iter().map(OsString::from).collect::<Vec<_>>()).map_err(|error| error.raw_os_error())
        };
        assert!(find(&root, &[]).unwrap().metadata().unwrap().is_dir());
        assert!(find(&root, &["sub", "file"]).is_ok() && find(&root, &["near"]).is_ok());
        for names in [&["far"][..], &["absolute"], &["proc"], &["..", "out"], &["sub", "..", "..", "out"]] {
            assert_eq!(find(&root, names).unwrap_err(), Some(18), "{names:?}: EXDEV");
        }
        assert_eq!(find(&root, &["pipe"]).unwrap_err(), Some(13));
        assert_eq!(find(&root, &["none"]).unwrap_err(), Some(2));
        assert_eq!(find(&root, &["sub", "file", "x"]).unwrap_err(), Some(20));
        let open = Root::open(&inside, true).unwrap();
        assert!(find(&open, &["far"]).is_ok() && find(&open, &["absolute"]).is_ok());
        // Where the kernel has no openat2.
        assert!(root.walk(OsStr::new("sub/file"), OFlags::RDONLY).is_ok());
        for path in ["far", "near", "absolute", "proc/passwd"] {
            assert!(root.walk(OsStr::new(path), OFlags::PATH).is_err(), "{path}");
        }
    }
}
