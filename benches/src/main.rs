//! Loopbox against its peers, in one run. `cargo xtask bench` builds the program, installs the peers and calls this.
//!
//! Machines are noisy, so nothing here is a time to be believed by itself: the contenders of a row take turns, the
//! median of their rounds counts, the spread stands beside it, and what is claimed is the ratio.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

mod contest;
mod disk;
mod filesystems;
mod fio;
mod formats;
mod images;
mod luks;
mod nbd;
mod net;
mod node;
mod run;
mod sound;
mod vhost;

use std::path::{Path, PathBuf};

/// The contests of one subject: given the program, the rows.
type Group = fn(&Path) -> Vec<contest::Row>;

/// The subjects, by the names that `cargo xtask bench` takes.
const GROUPS: &[(&str, Group)] = &[
    ("disk", disk::rows),
    ("loop", disk::loop_rows),
    ("node", node::rows),
    ("nbd", nbd::rows),
    ("vhost", vhost::rows),
    ("luks", luks::rows),
    ("formats", formats::rows),
    ("net", net::rows),
    ("filesystems", filesystems::rows),
    ("run", run::rows),
    ("sound", sound::rows),
];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    // Called by itself: one end of a connection that is measured.
    if let Some(("talk", words)) = words.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return net::talk::main(words);
    }
    let mut words = words.into_iter();
    let program = PathBuf::from(words.next().expect("the program to measure"));
    let report = PathBuf::from(words.next().expect("the report to write"));
    let wanted: Vec<String> = words.collect();
    for (name, rows) in GROUPS {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            eprintln!("{name}");
            contest::begin(&report, name);
            rows(&program);
        }
    }
}
