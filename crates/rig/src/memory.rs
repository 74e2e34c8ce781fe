//! How much memory a test may take.

pub use sys::allocation::Counted;

/// The most that reading a file system may hold at a time, bytes: what docs/images.md says, and room for what is under way.
const HELD_MAX: usize = 96 << 20;

/// Runs a task that must not hold more than that, though an image claims what it likes. The test's binary has [`Counted`]
/// as its `#[global_allocator]`.
///
/// # Panics
/// When the task held more, or when nothing counts.
pub fn bounded<T>(task: impl FnOnce() -> T) -> T {
    let (answer, most) = sys::allocation::most_held(task);
    assert!(most > 0, "Counted is not the allocator of this test");
    assert!(most <= HELD_MAX, "{most} bytes were held");
    answer
}
