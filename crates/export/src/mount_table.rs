//! What is mounted where, for a process: /proc/PID/mountinfo.
//!
//! ```text
//! 36 35 0:48 / /mnt/cd rw,nosuid - fuse.loopbox /home/u/cd.iso rw,user_id=1000,group_id=1000
//!       │      └ mount point        └ type       └ source         (spaces and the like as \040)
//!       └ device, major and minor
//! ```
//! See proc_pid_mountinfo(5).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use block::{Result, ResultExt as _};
use rustix::fs::Dev;

/// A line of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// The device that the file system's files have; of some file systems, none that is on a disk.
    pub device: Dev,
    /// Where.
    pub point: PathBuf,
    /// The type, with its subtype: `fuse.loopbox`, `ext4`.
    pub kind: String,
    /// What was mounted: a device, or whatever name it was given.
    pub source: OsString,
}

/// Everything that is mounted, in the order in which it was.
///
/// # Errors
/// What reading /proc/self/mountinfo said.
pub fn read() -> Result<Vec<Mounted>> {
    of(Path::new("/proc/self")).context(|| "table of mounts, /proc/self/mountinfo")
}

/// Everything that is mounted for the process of a folder of /proc, in the order in which it was.
///
/// # Errors
/// What reading its table said.
pub fn of(process: &Path) -> std::io::Result<Vec<Mounted>> {
    let text = std::fs::read(process.join("mountinfo"))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted at `point`, the topmost where there are several.
///
/// # Errors
/// As [`read`].
pub fn at(point: &Path) -> Result<Option<Mounted>> {
    Ok(read()?.into_iter().rfind(|mounted| mounted.point == point))
}

fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (major, minor) = std::str::from_utf8(fields.nth(2)?).ok()?.split_once(':')?;
    let device = rustix::fs::makedev(major.parse().ok()?, minor.parse().ok()?);
    let point = fields.nth(1)?;
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let kind = String::from_utf8(after.next()?.to_vec()).ok()?;
    Some(Mounted { device, point: unescape(point).into(), kind, source: unescape(after.next()?) })
}

/// `\040` and the like, three octal digits, are the bytes that would end a field.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let digits = after.get(..3).filter(|_| *first == b'\\').and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    OsString::from_vec(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let line = br"36 35 0:48 / /mnt/a\040b\134c rw,nosuid shared:1 master:2 - fuse.loopbox /x\011y rw";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.device, rustix::fs::makedev(0, 48));
        assert_eq!(mounted.point, Path::new("/mnt/a b\\c"));
        assert_eq!((mounted.kind.as_str(), mounted.source.to_str()), ("fuse.loopbox", Some("/x\ty")));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"1 2 3 4 /mnt rw - ext4"), None);
        assert_eq!(unescape(br"a\04"), r"a\04");
        assert_eq!(unescape(br"\9999"), r"\9999");
    }

    #[test]
    fn proc_is_mounted() {
        assert_eq!(at(Path::new("/proc")).unwrap().unwrap().kind, "proc");
    }
}
