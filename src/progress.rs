//! A copy out of an image as people see it: a bar on a terminal, names with `-v`, one line for each failure.

use std::sync::atomic::{AtomicU64, Ordering};

use fs::progress::Progress;
use fs::walk::{Next, Order, Step, walk};
use fs::{FileSystem, FileType, Inode, Stat};
use indicatif::{ProgressBar, ProgressStyle};

use crate::inside::Inside;
use crate::{listing, print};

/// What is shown while one source is copied.
#[derive(Debug)]
pub struct Shown<'a> {
    inside: &'a Inside,
    verbose: bool,
    bar: Option<ProgressBar>,
    failures: AtomicU64,
}

impl<'a> Shown<'a> {
    /// `bar`: whether there may be one; it is there only on a terminal.
    pub fn new(inside: &'a Inside, verbose: bool, bar: bool) -> Self {
        let bar = (bar && listing::shows_progress()).then(|| progress_bar(&*inside.fs, inside.inode));
        Self { inside, verbose, bar, failures: AtomicU64::new(0) }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn aside(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Progress for Shown<'_> {
    fn placed(&self, path: &[u8], _: &Stat) {
        if self.verbose {
            let line = self.inside.shown(path);
            self.aside(|| {
                let _ = print::line(&line);
            });
        }
    }

    fn copied(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn failed(&self, path: &[u8], error: &block::Error) {
        self.failures.fetch_add(1, Ordering::Relaxed);
        let line = format!("{}: {}", self.inside.shown(path), print::error_text(error));
        self.aside(|| print::warning(&line));
    }
}

/// What is shown while files of this machine are copied into an image.
#[derive(Debug)]
pub struct ShownIn {
    image: String,
    verbose: bool,
    bar: Option<ProgressBar>,
}

impl ShownIn {
    /// `bar`: whether there may be one; it is there only on a terminal.
    pub fn new(source: &std::path::Path, into: &std::ffi::OsStr, verbose: bool, bar: bool) -> Self {
        let bar = (bar && listing::shows_progress()).then(|| styled(bytes_below(source)));
        Self { image: print::escaped(into.as_encoded_bytes()), verbose, bar }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    fn aside(&self, write: impl FnOnce()) {
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Progress for ShownIn {
    fn placed(&self, path: &[u8], _: &Stat) {
        if self.verbose {
            let line = format!("{}:{}", self.image, print::escaped(path));
            self.aside(|| {
                let _ = print::line(&line);
            });
        }
    }

    fn copied(&self, bytes: u64) {
        if let Some(bar) = &self.bar {
            bar.inc(bytes);
        }
    }

    fn failed(&self, path: &[u8], error: &block::Error) {
        let line = format!("{}: {}", print::escaped(path), print::error_text(error));
        self.aside(|| print::warning(&line));
    }
}

/// What is shown while a file system is made of files.
#[derive(Debug)]
pub struct ShownMade(Option<ProgressBar>);

impl ShownMade {
    /// Of so many bytes; `bar`: whether there may be one; it is there only on a terminal.
    pub fn new(bytes: u64, bar: bool) -> Self {
        Self(bytes_bar(bytes, !bar))
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

impl Progress for ShownMade {
    fn copied(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    fn failed(&self, path: &[u8], error: &block::Error) {
        let line = format!("{}: {}", print::escaped(path), print::error_text(error));
        match &self.0 {
            Some(bar) => bar.suspend(|| print::warning(&line)),
            None => print::warning(&line),
        }
    }
}

/// Bytes of all regular files at and below a path of this machine.
fn bytes_below(path: &std::path::Path) -> u64 {
    let Ok(metadata) = std::fs::symlink_metadata(path) else { return 0 };
    if !metadata.is_dir() {
        return if metadata.is_file() { metadata.len() } else { 0 };
    }
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    entries.map(|entry| bytes_below(&entry.path())).fold(0, u64::saturating_add)
}

fn styled(bytes: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    ProgressBar::new(bytes).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// A bar as long as all content below `start`.
fn progress_bar(fs: &dyn FileSystem, start: Inode) -> ProgressBar {
    let mut bytes = 0_u64;
    walk(fs, start, Order::Directory, &mut |step| {
        if let Step::File(found) = step
            && found.stat.file_type == FileType::Regular
        {
            bytes = bytes.saturating_add(found.stat.size);
        }
        Next::Continue
    });
    styled(bytes)
}

/// A bar of so many bytes, unless it is not wanted, or nobody looks.
pub fn bytes_bar(bytes: u64, quiet: bool) -> Option<ProgressBar> {
    (!quiet && listing::shows_progress()).then(|| styled(bytes))
}
