//! The one error type of the disk loop: a kind, a sentence, and where it came from.

use std::borrow::Cow;

/// An error of the disk loop.
pub type Error = error::Error<Kind>;

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

impl error::Kind for Kind {
    fn of(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(errno) => Self::from_errno(errno),
            None => match error.kind() {
                std::io::ErrorKind::NotFound => Self::NotFound,
                std::io::ErrorKind::PermissionDenied => Self::Denied,
                std::io::ErrorKind::Unsupported => Self::Unsupported,
                std::io::ErrorKind::InvalidInput => Self::Invalid,
                _ => Self::Io,
            },
        }
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

impl<T, R: error::Context<T, Kind>> ResultExt<T> for R {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        error::Context::context(self, context)
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
}
