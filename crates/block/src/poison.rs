//! What a device remembers of a flush that failed.

use std::sync::atomic::{AtomicBool, Ordering};

use crate::{Error, Kind, Result};

/// Set once by a flush that failed, and never taken back: the kernel forgets pages that it could not write, so that a
/// second flush that succeeds would prove nothing.
#[derive(Debug, Default)]
pub struct Poison(AtomicBool);

impl Poison {
    /// Of a device whose flushes have not failed.
    pub const fn new() -> Self {
        Self(AtomicBool::new(false))
    }

    /// That no flush has failed yet: to be asked before anything that changes bytes.
    ///
    /// # Errors
    /// [`Kind::Poisoned`] when one has.
    #[inline]
    pub fn check(&self) -> Result<()> {
        if self.0.load(Ordering::Acquire) {
            return Err(Error::new(
                Kind::Poisoned,
                "a device whose flush failed earlier, and which takes no writes since",
            ));
        }
        Ok(())
    }

    /// Runs `flush` unless one has failed, and remembers when it fails.
    ///
    /// # Errors
    /// [`Kind::Poisoned`], or the failure of `flush`.
    pub fn flush(&self, flush: impl FnOnce() -> Result<()>) -> Result<()> {
        self.check()?;
        flush().inspect_err(|_| self.0.store(true, Ordering::Release))
    }
}
