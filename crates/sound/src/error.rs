//! The one error type of the sound loop: a kind, a sentence, and where it came from.

use std::borrow::Cow;
use std::fmt;

/// The result of everything that makes or takes sound.
pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// The system below failed.
    Io,
    /// The bytes do not mean what the format or the protocol demands.
    Corrupt,
    /// The format or the request is known, and not served.
    Unsupported,
    /// An argument or an option is wrong.
    Invalid,
    /// A named limit of loopbox would be passed.
    Limit,
    /// It is in use.
    Busy,
    /// The permissions of a file forbid it.
    Denied,
    /// There is no such file, sink or source.
    NotFound,
    /// What was on the other side is gone.
    Disconnected,
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
    /// An error of its own: `Error::new(Kind::Invalid, format!("rate of {rate} Hz"))`.
    pub fn new(kind: Kind, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error of the system. `context` says what was tried, on what.
    pub fn io(context: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        let kind = match source.kind() {
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::PermissionDenied => Kind::Denied,
            std::io::ErrorKind::AddrInUse => Kind::Busy,
            std::io::ErrorKind::InvalidInput => Kind::Invalid,
            std::io::ErrorKind::ConnectionReset
            | std::io::ErrorKind::BrokenPipe
            | std::io::ErrorKind::ConnectionRefused
            | std::io::ErrorKind::UnexpectedEof => Kind::Disconnected,
            _ => Kind::Io,
        };
        let mut error = Self::new(kind, context);
        error.0.source = Some(Box::new(source));
        error
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
