//! The one error type of the network loop: a kind, a sentence, and where it came from.

use std::borrow::Cow;

/// An error of the network loop.
pub type Error = error::Error<Kind>;

/// The result of everything that touches the network.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The system failed to do it.
    Io,
    /// An argument, a rule or an address is wrong.
    Invalid,
    /// The kernel, or this version of loopbox, cannot do it.
    Unsupported,
    /// A permission is missing.
    Denied,
    /// There is no such interface, name, file or process.
    NotFound,
    /// It is there already, or the address is taken.
    Busy,
    /// A named limit of loopbox would be passed.
    Limit,
    /// What came over the wire, or lies in the file, does not mean what it should.
    Corrupt,
    /// Nothing came back in time.
    TimedOut,
    /// No route leads there, or nobody listens there.
    Unreachable,
}

impl error::Kind for Kind {
    fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        match error.kind() {
            E::NotFound => Self::NotFound,
            E::PermissionDenied => Self::Denied,
            E::AlreadyExists | E::AddrInUse | E::ResourceBusy => Self::Busy,
            E::Unsupported => Self::Unsupported,
            E::InvalidInput => Self::Invalid,
            E::InvalidData | E::UnexpectedEof => Self::Corrupt,
            E::TimedOut => Self::TimedOut,
            E::ConnectionRefused | E::HostUnreachable | E::NetworkUnreachable | E::AddrNotAvailable => {
                Self::Unreachable
            }
            _ => match error.raw_os_error() {
                Some(19) => Self::NotFound,              // ENODEV
                Some(93 | 95 | 97) => Self::Unsupported, // EPROTONOSUPPORT, EOPNOTSUPP, EAFNOSUPPORT
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

impl error::Cause<Kind> for rustix::io::Errno {
    fn within(self, context: Cow<'static, str>) -> Error {
        Error::io(context, self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_is_that_of_the_errno_and_is_kept() {
        for (errno, kind) in [(13, Kind::Denied), (98, Kind::Busy), (19, Kind::NotFound), (5, Kind::Io)] {
            let error = Error::io("x", std::io::Error::from_raw_os_error(errno)).context("y");
            assert_eq!((error.kind(), error.to_string().as_str()), (kind, "y"));
        }
    }
}
