//! The program's own pages: code, constants, and the heap's free ones.

use std::ffi::{c_int, c_void};

use rustix::mm::Advice;

/// Most segments of code and constants that are let go of: a program has two, and each library two more.
const SEGMENTS_MAX: usize = 64;

/// Addresses and lengths of segments; those behind the last have length 0.
type Segments = [(usize, usize); SEGMENTS_MAX];

/// Lets go of what is mapped of the program's code and constants: whatever is used again comes back from the page cache, a
/// page fault each. For a process that has done its start and is going to do little for long.
pub fn forget_code() {
    let mut segments: Segments = [(0, 0); SEGMENTS_MAX];
    // SAFETY: `collect` reads the program headers that it is given, and writes to `segments`, only while it is called.
    unsafe { libc::dl_iterate_phdr(Some(collect), (&raw mut segments).cast()) };
    // Code from here on is the first to come back: there is little of it.
    for (start, length) in segments.into_iter().take_while(|(_, length)| *length > 0) {
        let pages = std::ptr::with_exposed_provenance_mut(start);
        // SAFETY: the pages are of a private mapping of the program's file that nobody writes, not even relocations
        // (those are in segments with PF_W): read again they hold the same. Code may run in them meanwhile.
        let _ = unsafe { rustix::mm::madvise(pages, length, Advice::LinuxDontNeed) };
    }
}

/// Gives pages of the heap that hold nothing back to the kernel, where the C library can (glibc).
pub fn trim_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: it takes the allocator's own locks, and touches only what is free.
    let _ = unsafe { libc::malloc_trim(0) };
}

/// Adds the segments of one object.
unsafe extern "C" fn collect(info: *mut libc::dl_phdr_info, _len: libc::size_t, segments: *mut c_void) -> c_int {
    // SAFETY: the C library hands over a structure and as many headers as it says, which live as long as the object;
    // `segments` is what `forget_code` handed over.
    let (base, headers, segments) = unsafe {
        let info = &*info;
        let headers = std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum));
        (info.dlpi_addr, headers, &mut *segments.cast::<Segments>())
    };
    let page = rustix::param::page_size() as u64;
    let mut free = segments.iter_mut().skip_while(|(_, length)| *length > 0);
    for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0) {
        // A page that it shares with another segment stays.
        let start = (base + header.p_vaddr).next_multiple_of(page);
        let end = (base + header.p_vaddr + header.p_filesz) / page * page;
        if start < end
            && let Some(segment) = free.next()
        {
            *segment = (start as usize, (end - start) as usize);
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// KiB of the program's code that are mapped.
    fn mapped() -> u64 {
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.contains(" r-xp ") || !line.contains('/'));
        let rss = lines.find_map(|line| line.strip_prefix("Rss:")).unwrap();
        rss.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_was_forgotten_runs_and_is_what_it_was() {
        static TEXT: &str = "constants too";
        let sum = |_: ()| (1..=10u64).product::<u64>() + TEXT.len() as u64;
        // Something that touches much of it.
        let before = (sum(()), format!("{:?}", std::fs::read_dir("/proc/self").unwrap().count() > 3));
        let much = mapped();
        forget_code();
        let little = mapped();
        assert!(little < much, "{little} of {much} KiB");
        assert_eq!((sum(()), format!("{:?}", std::fs::read_dir("/proc/self").unwrap().count() > 3)), before);
    }
}
