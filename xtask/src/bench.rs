//! The benchmarks: the program as users build it, against its peers.

use std::path::Path;

use crate::setup;
use crate::shell::{self, Result, cargo, root};

/// Peers that only benchmarks need.
const PACKAGES: &[&str] = &[
    "bubblewrap",
    "fuse2fs",
    "fusefat",
    "fuseiso",
    "genisoimage",
    "p7zip-full",
    "passt",
    "slirp4netns",
    "socat",
    "squashfuse",
];

/// Builds, installs, measures; `words` are names of groups, none means all.
pub fn run(words: &[String]) -> Result {
    setup::run()?;
    setup::install(PACKAGES)?;
    shell::run(&mut cargo(&["build", "--release", "--package", "loopbox", "--package", "loopbox-benches"]))?;
    // Beside this program's own folder: target/x86_64-unknown-linux-gnu/{debug,release}.
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let built = own.ancestors().nth(2).unwrap_or(Path::new("target")).join("release");
    let mut command = std::process::Command::new(built.join("loopbox-benches"));
    command.arg(built.join("loopbox")).arg(root().join("docs/performance.md")).args(words);
    shell::run(&mut command)
}
