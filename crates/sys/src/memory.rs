//! Memory for keys: `mlock(2)`, kept out of core dumps, wiped before it is given back.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};

use zeroize::Zeroize as _;

/// Address and length (bytes) of every [`Secret`] that lives: locks do not survive a fork.
static LIVE: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

fn live() -> MutexGuard<'static, Vec<(usize, usize)>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Bytes that are wiped when dropped, in pages of their own. They are locked into memory where `RLIMIT_MEMLOCK` allows
/// it, so that they are never written to a swap file, and are not part of a core dump.
pub struct Secret {
    pages: NonNull<u8>,
    mapped: usize,
    len: usize,
}

// SAFETY: the pages belong to this value alone, and are reached through borrows of it only.
unsafe impl Send for Secret {}
// SAFETY: as above; a shared borrow gives a shared slice.
unsafe impl Sync for Secret {}

impl Secret {
    /// `len` zero bytes.
    ///
    /// # Errors
    /// What `mmap(2)` says.
    pub fn new(len: usize) -> io::Result<Self> {
        let page = rustix::param::page_size();
        let mapped = len.max(1).checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let access = rustix::mm::ProtFlags::READ | rustix::mm::ProtFlags::WRITE;
        // SAFETY: a new anonymous mapping at an address of the kernel's choice touches no memory that is in use.
        let pages =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), mapped, access, rustix::mm::MapFlags::PRIVATE) }?;
        let pages = NonNull::new(pages.cast::<u8>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let secret = Self { pages, mapped, len };
        live().push((pages.as_ptr() as usize, mapped));
        lock(pages.as_ptr(), mapped);
        Ok(secret)
    }

    /// A copy of `bytes`, which the caller then wipes.
    ///
    /// # Errors
    /// As [`Secret::new`].
    pub fn of(bytes: &[u8]) -> io::Result<Self> {
        let mut secret = Self::new(bytes.len())?;
        secret.copy_from_slice(bytes);
        Ok(secret)
    }
}

/// Locks pages where that is allowed, and keeps them out of core dumps.
fn lock(pages: *mut u8, mapped: usize) {
    // SAFETY: neither call changes what the pages hold; that they may be refused (RLIMIT_MEMLOCK) is expected.
    unsafe {
        let _ = rustix::mm::mlock(pages.cast(), mapped);
        let _ = rustix::mm::madvise(pages.cast(), mapped, rustix::mm::Advice::LinuxDontDump);
    }
}

/// Locks every [`Secret`] again, for a process that was forked from one that had them.
pub fn lock_again() {
    for (pages, mapped) in live().iter() {
        lock(*pages as *mut u8, *mapped);
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.zeroize();
        let address = self.pages.as_ptr();
        live().retain(|(pages, _)| *pages != address as usize);
        // SAFETY: the mapping was made in `new` with this length, and no borrow of it outlives this value.
        let _ = unsafe { rustix::mm::munmap(address.cast(), self.mapped) };
    }
}

impl Deref for Secret {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: at least `len` bytes are mapped at `pages` as long as this value lives, zero at first.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr(), self.len) }
    }
}

impl DerefMut for Secret {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and `&mut self` means that there is no other borrow.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_ptr(), self.len) }
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Secret({} bytes)", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_locked_and_its_bytes_are_its_own() {
        let mut secret = Secret::new(5000).unwrap();
        assert_eq!(&secret[..], [0; 5000]);
        secret[4999] = 7;
        assert_eq!(Secret::of(&secret).unwrap()[4999], 7);
        assert_eq!(format!("{secret:?}"), "Secret(5000 bytes)");
        lock_again();
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let at = format!("{:x}-", secret.as_ptr() as usize);
        let flags = smaps.split_once(&at).and_then(|(_, rest)| rest.lines().find(|line| line.starts_with("VmFlags")));
        let flags = flags.unwrap();
        assert!(flags.contains(" dd"), "kept out of core dumps: {flags}");
        assert!(flags.contains(" lo"), "two pages may be locked everywhere: {flags}");
    }
}
