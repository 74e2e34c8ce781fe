//! Who watches a copy out of an image.

use block::Error;

use crate::Stat;

/// What happens while a tree is copied. Calls may come from several threads. Paths are those of the walk: from where it
/// started, empty there.
pub trait Progress: Sync {
    /// A file is there, all but its content, which may follow later.
    fn placed(&self, path: &[u8], stat: &Stat) {
        let _ = (path, stat);
    }

    /// This many more bytes of content are done (holes count).
    fn copied(&self, bytes: u64) {
        let _ = bytes;
    }

    /// A file, or a part of it, could not be copied; the rest goes on.
    fn failed(&self, path: &[u8], error: &Error) {
        let _ = (path, error);
    }
}

/// Nobody watches.
impl Progress for () {}
