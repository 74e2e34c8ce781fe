//! The one error type of the disk loop: a kind, a sentence, and where it came from.

use std::borrow::Cow;
use std::fmt;

/// The result of everything that touches a disk.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one word. Each kind has one errno: see [`Kind::errno`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The medium, or the system below, failed to read or write.
    Io,
    /// The bytes do not mean what the format demands.
    Corrupt,
    /// The format or the request is known, and not (or not yet) served.
    Unsupported,
    /// An argument or an option is wrong.
    Invalid,
    /// The request lies outside of the device or the file.
    OutOfRange,
    /// The device, the layer or the file system takes no writes.
    ReadOnly,
    /// A flush failed earlier: nothing is acknowledged any more.
    Poisoned,
    /// No room is left below.
    NoSpace,
    /// A named limit of loopbox would be passed.
    Limit,
    /// It is in use.
    Busy,
    /// The permissions of a file forbid it.
    Denied,
    /// A privilege is missing.
    NotPermitted,
    /// There is no such file, name, partition or device.
    NotFound,
    /// There is one already.
    Exists,
    /// It is not a directory.
    NotDirectory,
    /// It is a directory.
    IsDirectory,
    /// The directory holds something.
    NotEmpty,
    /// Too many links, one leading to the other.
    Loop,
    /// A name or a path is too long.
    NameTooLong,
    /// The file has no such extended attribute.
    NoAttribute,
    /// The device or its driver is not there.
    NoDevice,
    /// A call was interrupted by a signal.
    Interrupted,
    /// What was on the other side is gone.
    Disconnected,
}

/// Kinds and their errno, the only such table. The first row with an errno wins on the way back.
const ERRNO: &[(Kind, i32)] = &[
    (Kind::Io, 5),             // EIO
    (Kind::Corrupt, 117),      // EUCLEAN
    (Kind::Unsupported, 95),   // EOPNOTSUPP
    (Kind::Invalid, 22),       // EINVAL
    (Kind::OutOfRange, 22),    // EINVAL
    (Kind::ReadOnly, 30),      // EROFS
    (Kind::Poisoned, 5),       // EIO
    (Kind::NoSpace, 28),       // ENOSPC
    (Kind::Limit, 27),         // EFBIG
    (Kind::Busy, 16),          // EBUSY
    (Kind::Denied, 13),        // EACCES
    (Kind::NotPermitted, 1),   // EPERM
    (Kind::NotFound, 2),       // ENOENT
    (Kind::Exists, 17),        // EEXIST
    (Kind::NotDirectory, 20),  // ENOTDIR
    (Kind::IsDirectory, 21),   // EISDIR
    (Kind::NotEmpty, 39),      // ENOTEMPTY
    (Kind::Loop, 40),          // ELOOP
    (Kind::NameTooLong, 36),   // ENAMETOOLONG
    (Kind::NoAttribute, 61),   // ENODATA
    (Kind::NoDevice, 6),       // ENXIO
    (Kind::Interrupted, 4),    // EINTR
    (Kind::Disconnected, 107), // ENOTCONN
];

impl Kind {
    /// The errno (Linux, the same on every architecture that loopbox runs on) that a kernel or a client is given.
    pub fn errno(self) -> i32 {
        ERRNO.iter().find(|(kind, _)| *kind == self).map_or(5, |(_, errno)| *errno)
    }

    /// The kind of an errno that the kernel gave; [`Kind::Io`] for one without a row.
    pub fn from_errno(errno: i32) -> Self {
        match errno {
            // Words of the kernel for what has another errno here.
            19 => Self::NoDevice,    // ENODEV
            122 => Self::NoSpace,    // EDQUOT
            38 => Self::Unsupported, // ENOSYS
            _ => ERRNO.iter().find(|(_, row)| *row == errno).map_or(Self::Io, |(kind, _)| *kind),
        }
    }
}

/// What failed (a noun phrase, with numbers and units), of which [`Kind`], and what lay beneath it.
///
/// `Display` prints the context alone: the program walks [`std::error::Error::source`] and prints the chain once.
pub struct Error(Box<Inner>);

struct Inner {
    kind: Kind,
    context: Cow<'static, str>,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of its own: `Error::new(Kind::OutOfRange, format!("read of {len} bytes at {offset}"))`.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error of the system: its kind is that of the errno. `context` says what was tried, on what.
    pub fn io(context: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.raw_os_error() {
            Some(errno) => Kind::from_errno(errno),
            None => match source.kind() {
                std::io::ErrorKind::NotFound => Kind::NotFound,
                std::io::ErrorKind::PermissionDenied => Kind::Denied,
                std::io::ErrorKind::Unsupported => Kind::Unsupported,
                std::io::ErrorKind::InvalidInput => Kind::Invalid,
                _ => Kind::Io,
            },
        };
        Self::new(kind, context).with_source(source)
    }

    /// The same error with what caused it.
    pub fn with_source(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// This error as the source of a new one of the same kind, whose context is `context`.
    pub fn context(self, context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(self.kind(), context).with_source(self)
    }

    /// What went wrong, in one word.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// The errno for a kernel or a client.
    pub fn errno(&self) -> i32 {
        self.kind().errno()
    }

    /// The first error in the chain of sources that is a `T`: a format's own enum of corruption, say.
    pub fn find<T: std::error::Error + 'static>(&self) -> Option<&T> {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<T>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.context)?;
        if let Some(source) = &self.0.source {
            write!(f, ": {source:?}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// Saying what was tried when something fails.
pub trait ResultExt<T> {
    /// On failure, an [`Error`] whose context is what `context` returns and whose source is the failure.
    ///
    /// # Errors
    /// The failure, with its context.
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T>;
}

impl<T> ResultExt<T> for Result<T> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| error.context(context()))
    }
}

impl<T> ResultExt<T> for std::io::Result<T> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| Error::io(context(), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_an_errno_and_most_come_back() {
        for (kind, errno) in ERRNO {
            assert_eq!(kind.errno(), *errno);
            let back = Kind::from_errno(*errno);
            assert_eq!(back.errno(), *errno, "{kind:?}");
        }
        assert_eq!(Kind::from_errno(9999), Kind::Io);
    }

    #[test]
    fn the_chain_is_walked_and_the_kind_kept() {
        let io = std::io::Error::from_raw_os_error(28);
        let error = Error::io("write of 4096 bytes", io).context("saving");
        assert_eq!(error.kind(), Kind::NoSpace);
        assert_eq!(error.errno(), 28);
        assert_eq!(error.to_string(), "saving");
        assert_eq!(error.find::<std::io::Error>().and_then(std::io::Error::raw_os_error), Some(28));
    }
}
