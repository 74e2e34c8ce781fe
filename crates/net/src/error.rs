//! The one error type of the network loop: a kind, a sentence, and where it came from.

use std::borrow::Cow;
use std::fmt;

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

impl Kind {
    /// The kind of an error of the system.
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
    /// An error of its own.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error of the system. `context` says what was tried, on what.
    pub fn io(context: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        Self::new(Kind::of(&source), context).with_source(source)
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

impl<T> ResultExt<T> for rustix::io::Result<T> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T> {
        self.map_err(|error| Error::io(context(), error))
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
