//! What an image names itself (a backing file, a parent, an extent) is opened here, or not at all.
//!
//! An image can come from anybody, and a guest can write one into a raw disk: a name in it could be any file of the
//! user's. So nothing is opened unless the user has said so, chains have an end, and no file is in one chain twice.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::{Error, Kind, Result, Storage};

/// The most images of one chain, the first one included.
pub const DEPTH_MAX: usize = 64;
/// The longest name, bytes: qcow2's own limit.
pub const NAME_BYTES_MAX: usize = 1023;

/// Who a file is, however it was named: device and inode numbers, say.
pub type Identity = (u64, u64);

/// A file that was opened because an image names it.
#[derive(Debug)]
pub struct Opened {
    /// Its bytes; not written to.
    pub storage: Arc<dyn Storage>,
    /// Who it is.
    pub identity: Identity,
    /// Where it is: names in it are relative to the folder of this.
    pub path: PathBuf,
}

/// Opens files for images, as far as the user has allowed it.
pub trait Opener: fmt::Debug + Sync {
    /// Opens the file at `path`, for reading, which an image names. `depth` is 1 for what the user's own image names,
    /// 2 for what that one names.
    ///
    /// # Errors
    /// [`Kind::NotPermitted`] where the user has not allowed it; that of opening.
    fn open(&self, path: &Path, depth: usize) -> Result<Opened>;
}

/// The opener that opens nothing: for commands that look into what nobody has vouched for.
#[derive(Debug)]
pub struct Closed;

impl Opener for Closed {
    fn open(&self, path: &Path, _: usize) -> Result<Opened> {
        Err(refused(path))
    }
}

/// The error of a file that the user has not allowed.
pub fn refused(path: &Path) -> Error {
    let context = format!(
        "{}: named by the image itself, and not opened unless you say so: add ,backing to the image, or ,backing=FILE \
         to name another",
        path.display()
    );
    Error::new(Kind::NotPermitted, context)
}

/// The way from an image to what it names.
#[derive(Debug, Clone)]
pub struct Gate<'a> {
    opener: &'a dyn Opener,
    /// The image that names things.
    path: PathBuf,
    /// Those above, and itself.
    chain: Vec<Identity>,
}

impl<'a> Gate<'a> {
    /// For the image at `path`, which the user has named.
    pub fn new(opener: &'a dyn Opener, path: impl Into<PathBuf>, identity: Identity) -> Self {
        Self { opener, path: path.into(), chain: vec![identity] }
    }

    /// Opens what the image calls `name`, and the gate for what that names in turn.
    ///
    /// # Errors
    /// [`Kind::Loop`] for a file that is in the chain already; [`Kind::Limit`] at [`DEPTH_MAX`];
    /// [`Kind::NameTooLong`]; [`Kind::Unsupported`] for what is not the name of a file; that of the [`Opener`].
    pub fn open(&self, name: &str) -> Result<(Opened, Self)> {
        let path = self.resolve(name)?;
        let opened = self.opener.open(&path, self.chain.len())?;
        if self.chain.contains(&opened.identity) {
            let context = format!("{}: a backing chain that leads back to itself", opened.path.display());
            return Err(Error::new(Kind::Loop, context));
        }
        let mut chain = self.chain.clone();
        chain.push(opened.identity);
        let gate = Self { opener: self.opener, path: opened.path.clone(), chain };
        Ok((opened, gate))
    }

    fn resolve(&self, name: &str) -> Result<PathBuf> {
        if self.chain.len() >= DEPTH_MAX {
            return Err(Error::new(Kind::Limit, format!("a chain of more than {DEPTH_MAX} images")));
        }
        if name.len() > NAME_BYTES_MAX || name.is_empty() || name.contains('\0') {
            let context = format!("a file name of {} bytes inside an image", name.len());
            return Err(Error::new(Kind::NameTooLong, context));
        }
        let name = name.strip_prefix("file:").unwrap_or(name);
        // As QEMU has it: a word and a colon before any slash is a protocol.
        let word = name.split(['/', '\\']).next().unwrap_or_default();
        if let Some((scheme, _)) = word.split_once(':') {
            let scheme: String = scheme.chars().take(16).flat_map(char::escape_debug).collect();
            let context = format!("an image on top of \"{scheme}:…\", which is not the name of a file");
            return Err(Error::new(Kind::Unsupported, context));
        }
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        Ok(folder.join(name))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_are_beside_the_image_and_nothing_is_opened() {
        let gate = Gate::new(&Closed, "/images/disk.qcow2", (1, 1));
        let error = gate.open("base.img").unwrap_err();
        assert_eq!(error.kind(), Kind::NotPermitted);
        assert!(error.to_string().starts_with("/images/base.img: "), "{error}");
        assert_eq!(gate.open("nbd:localhost:1").unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(gate.open("json:{\"driver\":\"raw\"}").unwrap_err().kind(), Kind::Unsupported);
        assert_eq!(gate.open("").unwrap_err().kind(), Kind::NameTooLong);
        assert_eq!(gate.open(&"a".repeat(1024)).unwrap_err().kind(), Kind::NameTooLong);
        assert_eq!(gate.resolve("./a:b").unwrap(), Path::new("/images/./a:b"));
        assert_eq!(gate.resolve("/etc/passwd").unwrap(), Path::new("/etc/passwd"));
    }
}
