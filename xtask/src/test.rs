//! Every test, and the closing line that says what was skipped and why.

use crate::shell::{self, Result, cargo, root};

/// Runs the tests of the whole workspace; `words` go to `cargo test`.
pub fn run(words: &[String]) -> Result {
    let skips = root().join("target/skips.txt");
    let _ = std::fs::remove_file(&skips);
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.args(words).env("LOOPBOX_TEST_SKIPS", &skips);
    if shell::is_root() {
        // Everything can be had: whatever a test misses is a failure.
        command.env("LOOPBOX_TEST_STRICT", "1");
    }
    let done = shell::run(&mut command);
    let skipped = std::fs::read_to_string(&skips).unwrap_or_default();
    let mut lines: Vec<&str> = skipped.lines().collect();
    lines.sort_unstable();
    lines.dedup();
    for line in &lines {
        println!("{line}");
    }
    println!("{} skipped for what this kernel lacks", lines.len());
    done
}
