//! The disc image that `loopbox demo` shows: the project's own documents, made again the same by everybody.

use std::process::Command;

use crate::setup;
use crate::shell::{self, Result, root};

/// What goes onto it.
const DOCUMENTS: &[&str] =
    &["README.md", "ARCHITECTURE.md", "CONTRIBUTING.md", "LICENSE-MIT", "LICENSE-APACHE", "docs/overlay.md"];

/// 2026-01-01 00:00 UTC: the time of everything on it, so that the same documents give the same bytes.
const EPOCH: &str = "1767225600";

/// Writes test_data/demo.iso.
pub fn run() -> Result {
    setup::install(&["xorriso"])?;
    let folder = root().join("target/demo");
    let _ = std::fs::remove_dir_all(&folder);
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    for document in DOCUMENTS {
        let copy = folder.join(document);
        std::fs::create_dir_all(copy.parent().unwrap_or(&folder)).map_err(failed)?;
        std::fs::copy(root().join(document), copy).map_err(failed)?;
    }
    std::os::unix::fs::symlink("README.md", folder.join("start-here")).map_err(failed)?;
    shell::run(Command::new("sh").current_dir(&folder).args([
        "-ec",
        "find . -type f -exec chmod 644 {} +; find . -type d -exec chmod 755 {} +; find . -exec touch -h -d @\"$EPOCH\" {} +",
    ]).env("EPOCH", EPOCH))?;
    let words = ["-as", "mkisofs", "-quiet", "-R", "-uid", "0", "-gid", "0", "-J", "-V", "LOOPBOX", "-no-pad", "-o"];
    let mut command = Command::new("xorriso");
    command.args(words).arg(root().join("test_data/demo.iso")).arg(&folder).env("SOURCE_DATE_EPOCH", EPOCH);
    shell::run(&mut command)
}
