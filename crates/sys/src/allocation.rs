//! How much memory a thread takes: an allocator that counts, for tests.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    /// Bytes that this thread has taken and not given back, and the most that they were.
    static HELD: Cell<(isize, isize)> = const { Cell::new((0, 0)) };
}

/// The system's allocator, and a count for each thread: for `#[global_allocator]`.
#[derive(Debug)]
pub struct Counted;

/// What a task answers, and the most bytes that its thread held at a time beyond what it held before; 0 where
/// [`Counted`] is not the allocator. What other threads take is not counted.
pub fn most_held<T>(task: impl FnOnce() -> T) -> (T, usize) {
    HELD.set((0, 0));
    let answer = task();
    (answer, HELD.get().1.unsigned_abs())
}

fn note(taken: usize, given: usize) {
    // A thread that ends counts no more.
    let _ = HELD.try_with(|held| {
        let (now, most) = held.get();
        let now = now.saturating_add_unsigned(taken).saturating_sub_unsigned(given);
        held.set((now, most.max(now)));
    });
}

// SAFETY: each call is passed to the system's allocator as it came, and its answer as it is; counting allocates nothing.
unsafe impl GlobalAlloc for Counted {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the promises of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size(), 0);
        // SAFETY: the caller keeps the promises of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size, layout.size());
        // SAFETY: the caller keeps the promises of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        note(0, layout.size());
        // SAFETY: the caller keeps the promises of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}
