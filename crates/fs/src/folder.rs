//! A directory of this machine, as a file system that is only read.
//!
//! What makes a file system of a tree reads the tree by the same trait as everything else, so that the tree may as well
//! be another image. Symbolic links are not followed; other file systems that are mounted below belong to the tree.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{File, Metadata};
use std::io;
use std::ops::ControlFlow;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use block::{Error, Kind, Result, ResultExt as _, Source};
use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use crate::{
    Cursor, Entry, FileExtent, FileSystem, FileType, Inode, NAME_BYTES_MAX, Space, Stat, Time, XATTR_BYTES_MAX,
};

/// The longest list of attribute names, bytes: the kernel's XATTR_LIST_MAX.
const XATTR_LIST_BYTES_MAX: usize = 65_536;

/// The directory.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
    names: Mutex<Names>,
    /// The file that was read last.
    open: Mutex<Option<(Inode, Arc<File>)>>,
}

/// What was given out: inode 1 is the directory itself.
#[derive(Debug, Default)]
struct Names {
    /// Of each, the directory and the name in it.
    of: Vec<(Inode, Box<OsStr>)>,
    by_name: HashMap<(Inode, Box<OsStr>), Inode>,
    /// The numbers that people are shown, by device and inode of the host.
    numbers: HashMap<(u64, u64), u64>,
}

impl Folder {
    /// The directory at `path`.
    ///
    /// # Errors
    /// [`Kind::NotFound`], [`Kind::NotDirectory`]; that of the host.
    pub fn open(path: &Path) -> Result<Self> {
        let metadata = std::fs::metadata(path).context(|| path.display().to_string())?;
        if !metadata.is_dir() {
            return Err(Error::new(Kind::NotDirectory, path.display().to_string()));
        }
        // A link that the user names stands for what it points to.
        let path = path.canonicalize().context(|| path.display().to_string())?;
        let of = vec![(Inode(0), Box::from(OsStr::new("")))];
        Ok(Self { path, names: Mutex::new(Names { of, ..Names::default() }), open: Mutex::new(None) })
    }

    fn names(&self) -> std::sync::MutexGuard<'_, Names> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path_of(&self, inode: Inode) -> Result<PathBuf> {
        let names = self.names();
        let mut parts = Vec::new();
        let mut at = inode;
        while at != self.root() {
            let entry = index(at).and_then(|index| names.of.get(index));
            let (directory, name) = entry.ok_or_else(|| Error::new(Kind::NotFound, format!("inode {}", inode.0)))?;
            parts.push(name);
            at = *directory;
        }
        let mut path = self.path.clone();
        parts.into_iter().rev().for_each(|name| path.push(&**name));
        Ok(path)
    }

    fn inode(&self, directory: Inode, name: &OsStr) -> Inode {
        let mut names = self.names();
        if let Some(inode) = names.by_name.get(&(directory, Box::from(name))) {
            return *inode;
        }
        names.of.push((directory, Box::from(name)));
        let inode = Inode(names.of.len() as u64);
        names.by_name.insert((directory, Box::from(name)), inode);
        inode
    }

    fn metadata(&self, inode: Inode) -> Result<(PathBuf, Metadata)> {
        let path = self.path_of(inode)?;
        let metadata = std::fs::symlink_metadata(&path).context(|| path.display().to_string())?;
        Ok((path, metadata))
    }

    /// The content of a regular file, opened once for neighbouring reads.
    fn file(&self, inode: Inode) -> Result<Arc<File>> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, file)) = open.as_ref().filter(|(which, _)| *which == inode) {
            return Ok(Arc::clone(file));
        }
        let (path, metadata) = self.metadata(inode)?;
        let what = || path.display().to_string();
        if metadata.is_dir() {
            return Err(Error::new(Kind::IsDirectory, what()));
        }
        if !metadata.is_file() {
            return Err(Error::new(Kind::Invalid, format!("{}: not a regular file", what())));
        }
        // NONBLOCK: a pipe that has taken its place would be waited for.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opening = |flags| rustix::fs::open(&path, flags, Mode::empty());
        // Reading leaves the time of access alone, where the file is one's own.
        let opened = opening(flags | OFlags::NOATIME).or_else(|_| opening(flags));
        let file = File::from(opened.map_err(io::Error::from).context(what)?);
        let file = Arc::new(file);
        *open = Some((inode, Arc::clone(&file)));
        Ok(file)
    }
}

fn index(inode: Inode) -> Option<usize> {
    usize::try_from(inode.0.checked_sub(1)?).ok()
}

fn file_type(metadata: &Metadata) -> FileType {
    let kind = metadata.file_type();
    match () {
        () if kind.is_dir() => FileType::Directory,
        () if kind.is_symlink() => FileType::SymbolicLink,
        () if kind.is_block_device() => FileType::BlockDevice,
        () if kind.is_char_device() => FileType::CharacterDevice,
        () if kind.is_fifo() => FileType::Fifo,
        () if kind.is_socket() => FileType::Socket,
        () => FileType::Regular,
    }
}

fn time(seconds: i64, nanoseconds: i64) -> Time {
    Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or_default() }
}

impl FileSystem for Folder {
    fn name(&self) -> &'static str {
        "folder"
    }

    fn label(&self) -> String {
        String::new()
    }

    fn root(&self) -> Inode {
        Inode(1)
    }

    fn lookup(&self, directory: Inode, name: &[u8]) -> Result<Option<Inode>> {
        let (path, metadata) = self.metadata(directory)?;
        if !metadata.is_dir() {
            return Err(Error::new(Kind::NotDirectory, path.display().to_string()));
        }
        if !crate::path::is_name(name) {
            return Ok(None);
        }
        let path = path.join(OsStr::from_bytes(name));
        match std::fs::symlink_metadata(&path) {
            Ok(_) => Ok(Some(self.inode(directory, OsStr::from_bytes(name)))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(path.display().to_string(), error)),
        }
    }

    fn stat(&self, inode: Inode) -> Result<Stat> {
        let (_, metadata) = self.metadata(inode)?;
        let number = {
            let mut names = self.names();
            let next = (names.numbers.len() as u64).saturating_add(1);
            *names.numbers.entry((metadata.dev(), metadata.ino())).or_insert(next)
        };
        let file_type = file_type(&metadata);
        let device = matches!(file_type, FileType::BlockDevice | FileType::CharacterDevice);
        Ok(Stat {
            number,
            file_type,
            permissions: (metadata.mode() & 0o7777) as u16,
            links: u32::try_from(metadata.nlink()).unwrap_or(u32::MAX).max(1),
            uid: metadata.uid(),
            gid: metadata.gid(),
            size: metadata.len(),
            blocks: metadata.blocks(),
            device: device.then(|| (rustix::fs::major(metadata.rdev()), rustix::fs::minor(metadata.rdev()))),
            accessed: time(metadata.atime(), metadata.atime_nsec()),
            modified: time(metadata.mtime(), metadata.mtime_nsec()),
            changed: time(metadata.ctime(), metadata.ctime_nsec()),
            created: None,
        })
    }

    fn read_dir(
        &self,
        directory: Inode,
        from: Cursor,
        visit: &mut dyn FnMut(Entry<'_>) -> ControlFlow<()>,
    ) -> Result<()> {
        let (path, metadata) = self.metadata(directory)?;
        // A link to a directory would be followed.
        if !metadata.is_dir() {
            return Err(Error::new(Kind::NotDirectory, path.display().to_string()));
        }
        let listed = std::fs::read_dir(&path).and_then(|entries| entries.collect::<io::Result<Vec<_>>>());
        let mut names: Vec<_> = listed.context(|| path.display().to_string())?.iter().map(|e| e.file_name()).collect();
        names.sort();
        let skip = usize::try_from(from.0).unwrap_or(usize::MAX);
        for (next, name) in (1_u64..).zip(&names).skip(skip) {
            let inode = self.inode(directory, name);
            let entry = Entry { name: name.as_bytes(), inode, file_type: None, next: Cursor(next) };
            if visit(entry).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }

    fn read(&self, inode: Inode, buf: &mut [u8], offset: u64) -> Result<usize> {
        let file = self.file(inode)?;
        if i64::try_from(offset).is_err() {
            // No file of the host is as long.
            return Ok(0);
        }
        let mut filled = 0_usize;
        while let Some(rest) = buf.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match file.read_at(rest, offset.saturating_add(filled as u64)) {
                Ok(0) => break,
                Ok(read) => filled = filled.saturating_add(read),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io(self.path_of(inode)?.display().to_string(), error)),
            }
        }
        Ok(filled)
    }

    fn extent_at(&self, inode: Inode, offset: u64) -> Result<Option<FileExtent<'_>>> {
        let file = self.file(inode)?;
        let what = || self.path_of(inode).map(|path| path.display().to_string()).unwrap_or_default();
        let size = file.metadata().context(what)?.len();
        if offset >= size {
            return Ok(None);
        }
        let rest = size.saturating_sub(offset);
        let (len, source) = match rustix::fs::seek(&*file, SeekFrom::Data(offset)) {
            Ok(data) if data > offset => (data.saturating_sub(offset), Source::Hole),
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => (rest, Source::Hole),
            _ => {
                let hole = rustix::fs::seek(&*file, SeekFrom::Hole(offset)).unwrap_or(size);
                (hole.saturating_sub(offset), Source::Data)
            }
        };
        Ok(Some(FileExtent { len: len.clamp(1, rest), source }))
    }

    fn read_link(&self, inode: Inode) -> Result<Vec<u8>> {
        let (path, metadata) = self.metadata(inode)?;
        if !metadata.is_symlink() {
            return Err(Error::new(Kind::Invalid, format!("{}: not a symbolic link", path.display())));
        }
        Ok(std::fs::read_link(&path).context(|| path.display().to_string())?.into_os_string().into_vec())
    }

    fn xattrs(&self, inode: Inode) -> Result<Vec<Vec<u8>>> {
        let path = self.path_of(inode)?;
        let mut list = vec![0_u8; XATTR_LIST_BYTES_MAX];
        let len = match rustix::fs::llistxattr(&path, &mut list) {
            Ok(len) => len,
            Err(Errno::OPNOTSUPP) => 0,
            Err(errno) => return Err(Error::io(path.display().to_string(), errno)),
        };
        let names = list.get(..len).unwrap_or_default().split(|byte| *byte == 0).filter(|name| !name.is_empty());
        Ok(names.filter(|name| name.len() <= NAME_BYTES_MAX).map(<[u8]>::to_vec).collect())
    }

    fn xattr(&self, inode: Inode, name: &[u8]) -> Result<Vec<u8>> {
        let path = self.path_of(inode)?;
        let none = || Error::new(Kind::NoAttribute, format!("{}: {}", path.display(), name.escape_ascii()));
        let mut value = vec![0_u8; XATTR_BYTES_MAX];
        match rustix::fs::lgetxattr(&path, OsStr::from_bytes(name), &mut value) {
            Ok(len) => {
                value.truncate(len);
                Ok(value)
            }
            // RANGE: of a name that none has, since every value fits.
            Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::INVAL | Errno::RANGE) => Err(none()),
            Err(errno) => Err(Error::io(path.display().to_string(), errno)),
        }
    }

    fn space(&self) -> Result<Space> {
        let statfs = rustix::fs::statvfs(&self.path).map_err(io::Error::from);
        let statfs = statfs.context(|| self.path.display().to_string())?;
        Ok(Space {
            block_bytes: u32::try_from(statfs.f_frsize).unwrap_or(4096).max(1),
            blocks: statfs.f_blocks,
            blocks_free: statfs.f_bfree,
            blocks_available: statfs.f_bavail,
            files: statfs.f_files,
            files_free: statfs.f_ffree,
        })
    }
}
