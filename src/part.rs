//! A file in the making: it has no name until it is whole, so that nothing is left of one that fails.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result, ResultExt as _};
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;

/// The file.
#[derive(Debug)]
pub struct Part {
    file: File,
    target: PathBuf,
    /// Its name for the time being, where the file system has no files without one.
    named: Option<PathBuf>,
}

impl Part {
    /// An empty file that is to be `target`.
    ///
    /// # Errors
    /// [`Kind::Exists`]; that of the host.
    pub fn new(target: &Path) -> Result<Self> {
        let what = || target.display().to_string();
        if target.symlink_metadata().is_ok() {
            return Err(Error::new(Kind::Exists, format!("{} is there already", what())));
        }
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let name = target.file_name().ok_or_else(|| Error::new(Kind::Invalid, what()))?;
        let mode = Mode::from_raw_mode(0o666);
        match rustix::fs::open(folder, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, mode) {
            Ok(file) => return Ok(Self { file: file.into(), target: target.to_path_buf(), named: None }),
            Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::INVAL) => {}
            Err(errno) => return Err(Error::io(what(), errno)),
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let path = folder.join(hidden);
        let file = File::options().read(true).write(true).create_new(true).open(&path).context(what)?;
        Ok(Self { file, target: target.to_path_buf(), named: Some(path) })
    }

    /// The file, once more.
    ///
    /// # Errors
    /// That of the host.
    pub fn file(&self) -> Result<File> {
        self.file.try_clone().context(|| self.target.display().to_string())
    }

    /// Gives it its name.
    ///
    /// # Errors
    /// [`Kind::Exists`] where there is one by now; that of the host.
    pub fn finish(self) -> Result<()> {
        let what = || self.target.display().to_string();
        let linked = match &self.named {
            Some(path) => rustix::fs::linkat(CWD, path, CWD, &self.target, AtFlags::empty()),
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                rustix::fs::linkat(CWD, own, CWD, &self.target, AtFlags::SYMLINK_FOLLOW)
            }
        };
        match (linked, &self.named) {
            // A file system without hard links.
            (Err(Errno::PERM | Errno::OPNOTSUPP), Some(path)) => std::fs::rename(path, &self.target).context(what),
            (linked, _) => linked.map_err(std::io::Error::from).context(what),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        if let Some(path) = &self.named {
            let _ = std::fs::remove_file(path);
        }
    }
}
