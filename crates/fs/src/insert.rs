//! Files of this machine, copied into a file system that is written.
//!
//! What a file system does not hold (owners, modes, links, holes) is not copied; a link or a device is reported and left
//! out where the file system has none. Directories are merged, files replaced.

use std::fs::{File, Metadata};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use block::{Error, Kind, Result, ResultExt as _};

use crate::progress::Progress;
use crate::{Changes, FileType, Inode, Time, Writable};

/// Bytes that are copied at one time.
const PIECE_BYTES: usize = 1 << 20;
/// How many directories may lie inside each other.
const DEPTH_MAX: usize = 1024;

/// What a copy came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Report {
    /// Files that were copied.
    pub files: u64,
    /// Files that were not, or not as a whole: each was reported.
    pub failures: u64,
}

/// How a copy goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// Nothing follows the first failure.
    pub fail_fast: bool,
    /// No time that is copied or given is later than this one, as with SOURCE_DATE_EPOCH.
    pub time_max: Option<Time>,
}

/// Copies `source` into `directory` under `name`; or, without a name, what is in it. Entries are copied in the order of
/// their names, so that the same tree gives the same file system.
///
/// # Errors
/// What stops all of it. What concerns one file is told to `progress` and counted.
pub fn insert(
    fs: &dyn Writable,
    source: &Path,
    directory: Inode,
    name: Option<&[u8]>,
    now: Time,
    options: Options,
    progress: &dyn Progress,
) -> Result<Report> {
    let mut insert =
        Insert { fs, now: options.clamp(now), options, progress, report: Report::default(), buf: vec![0; PIECE_BYTES] };
    match name {
        Some(name) => insert.file(source, directory, name, name, 0)?,
        None => insert.directory(source, directory, b"", 0)?,
    }
    Ok(insert.report)
}

impl Options {
    fn clamp(&self, time: Time) -> Time {
        self.time_max.map_or(time, |most| time.min(most))
    }
}

struct Insert<'a> {
    fs: &'a dyn Writable,
    now: Time,
    options: Options,
    progress: &'a dyn Progress,
    report: Report,
    buf: Vec<u8>,
}

impl Insert<'_> {
    /// What is in a directory of this machine.
    fn directory(&mut self, source: &Path, into: Inode, path: &[u8], depth: usize) -> Result<()> {
        if depth > DEPTH_MAX {
            return self.failed(path, Error::new(Kind::Limit, format!("a directory inside {DEPTH_MAX} others")));
        }
        let listed = std::fs::read_dir(source).and_then(|entries| entries.collect::<std::io::Result<Vec<_>>>());
        let mut names = match listed.context(|| source.display().to_string()) {
            Ok(entries) => entries.iter().map(std::fs::DirEntry::file_name).collect::<Vec<_>>(),
            Err(error) => return self.failed(path, error),
        };
        names.sort();
        for name in names {
            let below = [path, if path.is_empty() { b"" } else { b"/" }, name.as_bytes()].concat();
            self.file(&source.join(&name), into, name.as_bytes(), &below, depth)?;
        }
        Ok(())
    }

    fn file(&mut self, source: &Path, directory: Inode, name: &[u8], path: &[u8], depth: usize) -> Result<()> {
        let copied = std::fs::symlink_metadata(source)
            .context(|| source.display().to_string())
            .and_then(|metadata| Ok((self.content(source, &metadata, directory, name)?, metadata)));
        let (inode, metadata) = match copied {
            Ok(copied) => copied,
            Err(error) => return self.failed(path, error),
        };
        self.report.files = self.report.files.saturating_add(1);
        if metadata.is_dir() {
            self.directory(source, inode, path, depth.saturating_add(1))?;
        }
        let time = |seconds, nanoseconds: i64| {
            Some(self.options.clamp(Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or_default() }))
        };
        let changes = Changes {
            accessed: time(metadata.atime(), metadata.atime_nsec()).filter(|_| self.options.time_max.is_none()),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            created: None,
            permissions: Some((metadata.mode() & 0o7777) as u16),
        };
        if let Err(error) = self.fs.change(inode, changes) {
            return self.failed(path, error);
        }
        if let Ok(stat) = self.fs.stat(inode) {
            self.progress.placed(path, &stat);
        }
        Ok(())
    }

    /// The file in its place, with its content where it is a regular one.
    fn content(&mut self, source: &Path, metadata: &Metadata, directory: Inode, name: &[u8]) -> Result<Inode> {
        let kind = metadata.file_type();
        let file_type = if kind.is_dir() { FileType::Directory } else { FileType::Regular };
        if !kind.is_dir() && !kind.is_file() {
            let what = match () {
                () if kind.is_symlink() => "a symbolic link",
                () if kind.is_fifo() => "a pipe",
                () if kind.is_socket() => "a socket",
                () => "a device",
            };
            return Err(Error::new(Kind::Unsupported, format!("{what}, which {} cannot hold", self.fs.name())));
        }
        let there = self.fs.lookup(directory, name)?;
        let inode = match there {
            Some(inode) => {
                let is_directory = self.fs.stat(inode)?.file_type == FileType::Directory;
                match (is_directory, kind.is_dir()) {
                    (true, false) => return Err(Error::new(Kind::IsDirectory, "what is there, and is not replaced")),
                    (false, true) => return Err(Error::new(Kind::NotDirectory, "what is there, and is not replaced")),
                    (true, true) => return Ok(inode),
                    (false, false) => inode,
                }
            }
            None => self.fs.create(directory, name, file_type, self.now)?,
        };
        if kind.is_dir() {
            return Ok(inode);
        }
        let file = File::open(source).context(|| source.display().to_string())?;
        if there.is_some() {
            self.fs.truncate(inode, 0, self.now)?;
        }
        let mut offset = 0_u64;
        loop {
            let read = file.read_at(&mut self.buf, offset).context(|| source.display().to_string())?;
            if read == 0 {
                return Ok(inode);
            }
            self.fs.write(inode, self.buf.get(..read).unwrap_or_default(), offset, self.now)?;
            offset = offset.saturating_add(read as u64);
            self.progress.copied(read as u64);
        }
    }

    fn failed(&mut self, path: &[u8], error: Error) -> Result<()> {
        self.report.failures = self.report.failures.saturating_add(1);
        // Nothing more can be written.
        let ends_all =
            self.options.fail_fast || matches!(error.kind(), Kind::NoSpace | Kind::Poisoned | Kind::ReadOnly);
        if ends_all {
            return Err(error.context(crate::path::Printable(path).to_string()));
        }
        self.progress.failed(path, &error);
        Ok(())
    }
}
