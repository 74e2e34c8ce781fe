//! What must hold besides the tests: format, lints, docs, licences; and the fuzz targets.

use std::process::Command;

use crate::shell::{self, Result, cargo, root, succeeds};

/// Format, lints, documentation, licences.
pub fn run() -> Result {
    shell::run(&mut cargo(&["fmt", "--all", "--check"]))?;
    shell::run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    shell::run(cargo(&["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))?;
    if succeeds("cargo", &["deny", "--version"]) {
        shell::run(&mut cargo(&["deny", "--offline", "check", "licenses", "bans", "sources"]))?;
        if let Err(why) = shell::run(&mut cargo(&["deny", "check", "advisories"])) {
            eprintln!("xtask: the advisories could not be checked: {why}");
        }
    } else {
        eprintln!("xtask: no cargo-deny: licences not checked; `cargo install cargo-deny` changes that");
    }
    Ok(())
}

/// Each fuzz target for `seconds`: with cargo-fuzz where it is, otherwise only built.
pub fn fuzz(seconds: u32) -> Result {
    let folder = root().join("fuzz/fuzz_targets");
    let mut targets: Vec<String> = std::fs::read_dir(&folder)
        .map_err(|error| format!("{}: {error}", folder.display()))?
        .filter_map(|entry| Some(entry.ok()?.path().file_stem()?.to_str()?.to_owned()))
        .collect();
    targets.sort();
    if !succeeds("cargo", &["fuzz", "--version"]) {
        eprintln!("xtask: no cargo-fuzz: fuzz targets not run; `cargo install cargo-fuzz` changes that");
        return Ok(());
    }
    for target in targets {
        // What was found before, and the images that are broken on purpose.
        let corpus = format!("fuzz/corpus/{target}");
        std::fs::create_dir_all(root().join(&corpus)).map_err(|error| format!("{corpus}: {error}"))?;
        let mut command = Command::new("cargo");
        // No sanitizer of memory: where there is no unsafe code, overflow checks and assertions find what there is.
        command.args(["+nightly", "fuzz", "run", "--sanitizer", "none", &target, &corpus, "test_data/broken", "--"]);
        command.args(["-rss_limit_mb=1024", "-timeout=10"]);
        shell::run(command.arg(format!("-max_total_time={seconds}")).current_dir(root()))?;
    }
    Ok(())
}
