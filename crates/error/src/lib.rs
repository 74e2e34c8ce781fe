//! The shape of every error of loopbox: a kind, a sentence, and where it came from.
//!
//! Each loop (disk, network, sound) has its own kinds and names the type once, `type Error = error::Error<Kind>`;
//! what an error is made of, and how it is printed, is here.

#![forbid(unsafe_code)]

use std::borrow::Cow;
use std::error::Error as Source;
use std::fmt;

/// What went wrong, in one word.
pub trait Kind: Copy + Eq + fmt::Debug + Send + Sync + 'static {
    /// The kind of an error of the system.
    fn of(error: &std::io::Error) -> Self;
}

/// What failed (a noun phrase, with numbers and units), of which [`Kind`], and what lay beneath it.
///
/// `Display` prints the context alone: the program walks [`std::error::Error::source`] and prints the chain once.
pub struct Error<K>(Box<Inner<K>>);

struct Inner<K> {
    kind: K,
    context: Cow<'static, str>,
    source: Option<Box<dyn Source + Send + Sync>>,
}

impl<K: Kind> Error<K> {
    /// An error of its own: `Error::new(Kind::OutOfRange, format!("read of {len} bytes at {offset}"))`.
    pub fn new(kind: K, context: impl Into<Cow<'static, str>>) -> Self {
        Self(Box::new(Inner { kind, context: context.into(), source: None }))
    }

    /// An error of the system, of the kind that [`Kind::of`] gives it. `context` says what was tried, on what.
    pub fn io(context: impl Into<Cow<'static, str>>, source: impl Into<std::io::Error>) -> Self {
        let source = source.into();
        Self::new(K::of(&source), context).with_source(source)
    }

    /// The same error with what caused it.
    pub fn with_source(mut self, source: impl Into<Box<dyn Source + Send + Sync>>) -> Self {
        self.0.source = Some(source.into());
        self
    }

    /// This error as the source of a new one of the same kind, whose context is `context`.
    pub fn context(self, context: impl Into<Cow<'static, str>>) -> Self {
        Self::new(self.kind(), context).with_source(self)
    }

    /// What went wrong, in one word.
    pub fn kind(&self) -> K {
        self.0.kind
    }

    /// The first error in the chain of sources that is a `T`: a format's own enum of corruption, say.
    pub fn find<T: Source + 'static>(&self) -> Option<&T> {
        let mut next: Option<&(dyn Source + 'static)> = Some(self);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<T>() {
                return Some(found);
            }
            next = error.source();
        }
        None
    }
}

impl<K: fmt::Debug> fmt::Debug for Error<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.context)?;
        match &self.0.source {
            Some(source) => write!(f, ": {source:?}"),
            None => Ok(()),
        }
    }
}

impl<K> fmt::Display for Error<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.context)
    }
}

impl<K: fmt::Debug> Source for Error<K> {
    fn source(&self) -> Option<&(dyn Source + 'static)> {
        self.0.source.as_deref().map(|source| source as _)
    }
}

/// What can be the source of an error of kind `K`.
pub trait Cause<K> {
    /// The error that has it as its source; `context` says what was tried, on what.
    fn within(self, context: Cow<'static, str>) -> Error<K>;
}

impl<K: Kind> Cause<K> for Error<K> {
    fn within(self, context: Cow<'static, str>) -> Self {
        self.context(context)
    }
}

impl<K: Kind> Cause<K> for std::io::Error {
    fn within(self, context: Cow<'static, str>) -> Error<K> {
        Error::io(context, self)
    }
}

/// Saying what was tried when something fails. A crate offers it for its own kind, so that callers need not name one.
pub trait Context<T, K> {
    /// On failure, an [`Error`] whose context is what `context` returns and whose source is the failure.
    ///
    /// # Errors
    /// The failure, with its context.
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T, Error<K>>;
}

impl<T, K, E: Cause<K>> Context<T, K> for Result<T, E> {
    fn context<C: Into<Cow<'static, str>>>(self, context: impl FnOnce() -> C) -> Result<T, Error<K>> {
        self.map_err(|error| error.within(context().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Word {
        Full,
        Other,
    }

    impl Kind for Word {
        fn of(error: &std::io::Error) -> Self {
            if error.raw_os_error() == Some(28) { Self::Full } else { Self::Other }
        }
    }

    #[test]
    fn the_chain_is_walked_and_the_kind_kept() {
        let full: std::io::Result<()> = Err(std::io::Error::from_raw_os_error(28));
        let error: Error<Word> = full.context(|| "write of 4096 bytes").unwrap_err().context("saving");
        assert_eq!(error.kind(), Word::Full);
        assert_eq!(error.to_string(), "saving");
        assert!(format!("{error:?}").starts_with("Full: saving: Full: write of 4096 bytes: Os"), "{error:?}");
        assert_eq!(error.find::<std::io::Error>().and_then(std::io::Error::raw_os_error), Some(28));
        assert_eq!(Error::<Word>::io("x", std::io::Error::from_raw_os_error(5)).kind(), Word::Other);
    }
}
