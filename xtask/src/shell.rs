//! Running programs, shown as they are run.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What every step returns: done, or why not.
pub type Result<T = ()> = std::result::Result<T, String>;

/// The folder of the workspace.
pub fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_path_buf()
}

/// `cargo`, in the folder of the workspace.
pub fn cargo(words: &[&str]) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.args(words).current_dir(root());
    command
}

/// Says what is run, runs it, and wants exit status 0.
pub fn run(command: &mut Command) -> Result {
    let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
    let program = Path::new(command.get_program()).file_name().unwrap_or_default().to_string_lossy().into_owned();
    eprintln!("\n$ {program} {}", words.join(" "));
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("{program}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{program} {}`: {status}", words.join(" "))) }
}

/// Whether a command ends with exit status 0, its output unseen.
pub fn succeeds(program: &str, words: &[&str]) -> bool {
    Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

/// Whether this is root.
pub fn is_root() -> bool {
    Command::new("id").arg("-u").output().is_ok_and(|output| output.stdout == b"0\n")
}
