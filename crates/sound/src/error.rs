//! The one error type of the sound loop: a kind, a sentence, and where it came from.

/// An error of the sound loop.
pub type Error = error::Error<Kind>;

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

impl error::Kind for Kind {
    fn of(error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        match error.kind() {
            E::NotFound => Self::NotFound,
            E::PermissionDenied => Self::Denied,
            E::AddrInUse => Self::Busy,
            E::InvalidInput => Self::Invalid,
            E::ConnectionReset | E::BrokenPipe | E::ConnectionRefused | E::UnexpectedEof => Self::Disconnected,
            _ => Self::Io,
        }
    }
}
