//! A file in the making: it has no name until it is whole, so that nothing is left of one that fails.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result, ResultExt as _};
use format::sequential::Output;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// What becomes of a file that has the name already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Existing {
    /// It stays, and nothing is made.
    Refuse,
    /// It is replaced by one that is whole, and on the disk.
    Replace,
}

/// The file.
#[derive(Debug)]
pub struct Part {
    file: File,
    target: PathBuf,
    existing: Existing,
    /// Its name for the time being, where the file system has no files without one.
    named: Option<PathBuf>,
}

impl Part {
    /// An empty file that is to be `target`.
    ///
    /// # Errors
    /// [`Kind::Exists`] where there is one that must stay; that of the host.
    pub fn new(target: &Path, existing: Existing) -> Result<Self> {
        let what = || target.display().to_string();
        if existing == Existing::Refuse && target.symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, format!("{} is there already", what())));
        }
        let folder = folder_of(target);
        let hidden = hidden(target)?;
        let mode = Mode::from_raw_mode(0o666);
        let target = target.to_path_buf();
        match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => return Ok(Self { file: file.into(), target, existing, named: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(errno) => return Err(Error::io(target.display().to_string(), errno)),
        }
        let file = File::options().read(true).write(true).create_new(true).open(&hidden);
        let file = file.context(|| target.display().to_string())?;
        Ok(Self { file, target, existing, named: Some(hidden) })
    }

    /// The file, once more.
    ///
    /// # Errors
    /// That of the host.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().context(|| self.target.display().to_string())
    }

    fn sync(&self) -> Result<()> {
        self.file.sync_all().context(|| format!("{}: writing it to the disk", self.target.display()))
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`Kind::Exists`] where there is one by now; that of the host.
    pub fn finish(mut self) -> Result<()> {
        match self.link(&self.target) {
            Err(Errno::EXIST) if self.existing == Existing::Replace => {
                // What it replaces is gone then: no power cut may take both.
                self.sync()?;
                if self.named.is_none() {
                    let hidden = hidden(&self.target)?;
                    self.link(&hidden).map_err(|errno| Error::io(hidden.display().to_string(), errno))?;
                    self.named = Some(hidden);
                }
                self.rename()
            }
            // A file system without hard links.
            Err(Errno::PERM | Errno::OPNOTSUPP) if self.named.is_some() => self.rename(),
            linked => linked.map_err(|errno| Error::io(self.target.display().to_string(), errno)),
        }
    }

    /// Gives it its name, and returns when file and name are on the disk.
    ///
    /// # Errors
    /// As [`Part::finish`].
    pub fn finish_on_disk(self) -> Result<()> {
        self.sync()?;
        let target = self.target.clone();
        self.finish()?;
        let folder = folder_of(&target);
        File::open(folder).and_then(|folder| folder.sync_all()).context(|| folder.display().to_string())
    }

    fn link(&self, to: &Path) -> std::result::Result<(), Errno> {
        match &self.named {
            Some(path) => rustix::fs::linkat(CWD, path, CWD, to, AtFlags::empty()),
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, own, CWD, to, AtFlags::SYMLINK_FOLLOW)
            }
        }
    }

    fn rename(&mut self) -> Result<()> {
        let Some(path) = self.named.as_ref() else { return Ok(()) };
        std::fs::rename(path, &self.target).context(|| self.target.display().to_string())?;
        self.named = None;
        Ok(())
    }
}

fn folder_of(target: &Path) -> &Path {
    target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A name beside the target that nobody sees.
fn hidden(target: &Path) -> Result<PathBuf> {
    let name = target.file_name().ok_or_else(|| Error::new(Kind::Invalid, target.display().to_string()))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}", std::process::id()));
    Ok(target.with_file_name(hidden))
}

impl Output for Part {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.file
            .write_all_at(bytes, offset)
            .map_err(|error| Error::io(format!("{}: write at {offset}", self.target.display()), error))
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        self.file.set_len(bytes).context(|| format!("{}: setting its size to {bytes} bytes", self.target.display()))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = std::fs::remove_file(path);
        }
    }
}
