//! The test suite of libnbd, pointed at loopbox: it starts nbdkit, and finds `tests/peers/libnbd/nbdkit` in its place.
//!
//! Its sources are fetched, built and run under `target/peers`; nothing of them is kept here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::setup;
use crate::shell::{self, Result, cargo, root};

/// What building it needs.
const PACKAGES: &[&str] = &["gcc", "libgnutls28-dev", "libxml2-dev", "make", "pkg-config"];
/// A line of sources for each place that this machine has its packages from.
const SOURCES: &str = "deb-src $(REPO_URI) $(RELEASE) $(COMPONENT)";
/// The folders of its tests.
const FOLDERS: &[&str] = &["tests", "info", "copy", "interop"];
/// What the stand-in for nbdkit says of words that loopbox has nothing for.
const NO_COUNTERPART: &str = "no counterpart";
/// What it says before it becomes loopbox.
const SERVED: &str = "served by loopbox";
/// Tests that are about nbdkit itself or another machine, and why they may fail.
const EXCUSED: &[(&str, &str)] = &[
    ("connect-tcp6", "nbdkit listens on all addresses, loopbox on the first of localhost"),
    ("copy-nbd-to-hexdump.sh", "needs hexdump"),
    ("list-exports-nbdkit", "wants exports without a description; loopbox gives the name of the file"),
];

/// Fetches, builds, runs and judges.
pub fn run() -> Result {
    setup::install(PACKAGES)?;
    shell::run(&mut cargo(&["build", "--package", "loopbox"]))?;
    let folder = root().join("target/peers/libnbd");
    let source = source(&folder)?;
    if !source.join("Makefile").exists() {
        let without = ["--disable-ocaml", "--disable-golang", "--disable-python", "--disable-fuse"];
        shell::run(Command::new("./configure").args(without).current_dir(&source))?;
    }
    shell::run(Command::new("make").arg("--quiet").current_dir(&source))?;
    let images = folder.join("images");
    fs::create_dir_all(&images).map_err(|error| error.to_string())?;
    let stand_in = root().join("tests/peers/libnbd");
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let program = own.parent().unwrap_or(Path::new(".")).join("loopbox");
    let path = format!("{}:{}", stand_in.display(), std::env::var("PATH").unwrap_or_default());
    let (mut passed, mut failed) = (0, Vec::new());
    for tests in FOLDERS {
        let mut make = Command::new("timeout");
        make.args(["600", "make", "--keep-going", "-j2", "check"]).arg(format!("NBDKIT={}/nbdkit", stand_in.display()));
        make.current_dir(source.join(tests));
        make.env("PATH", &path).env("LOOPBOX", &program).env("LOOPBOX_IMAGES", &images);
        // Tests that fail are judged below.
        let _ = shell::run(&mut make);
        for (name, verdict) in results(&source.join(tests))? {
            match verdict {
                Verdict::Passed => passed += 1,
                Verdict::NotForUs => eprintln!("not for loopbox: {name}"),
                Verdict::Failed => failed.push(format!("{tests}/{name}")),
            }
        }
    }
    let _ = fs::remove_dir_all(&images);
    eprintln!("\nlibnbd's own tests: {passed} passed, {} failed", failed.len());
    if passed == 0 || !failed.is_empty() { Err(format!("failed: {}", failed.join(" "))) } else { Ok(()) }
}

/// The unpacked sources; by the sources' list of this project alone.
fn source(folder: &Path) -> Result<PathBuf> {
    let unpacked = || {
        let entries = fs::read_dir(folder).ok()?.flatten().map(|entry| entry.path());
        entries.into_iter().find(|path| path.join("configure").exists())
    };
    if let Some(source) = unpacked() {
        return Ok(source);
    }
    let lists = folder.join("apt/lists/partial");
    fs::create_dir_all(&lists).map_err(|error| error.to_string())?;
    let places = Command::new("apt-get").args(["indextargets", "--format", SOURCES, "Created-By: Packages"]).output();
    fs::write(folder.join("apt/sources.list"), places.map_err(|error| error.to_string())?.stdout)
        .map_err(|error| error.to_string())?;
    let apt = |words: &[&str]| {
        let at = |name: &str, path: &str| format!("-oDir::{name}={}", folder.join(path).display());
        let mut command = Command::new("apt-get");
        command.args([at("Etc::SourceList", "apt/sources.list"), at("State::Lists", "apt/lists")]);
        command.args([at("Cache", "apt"), "-oDir::Etc::SourceParts=/dev/null".to_owned()]);
        command.args(words).current_dir(folder);
        shell::run(&mut command)
    };
    apt(&["update"])?;
    apt(&["source", "--download-only", "libnbd"])?;
    let entries = fs::read_dir(folder).map_err(|error| error.to_string())?.flatten().map(|entry| entry.path());
    let archive = entries.into_iter().find(|path| path.to_string_lossy().ends_with(".orig.tar.gz"));
    shell::run(Command::new("tar").arg("xf").arg(archive.ok_or("no sources of libnbd")?).current_dir(folder))?;
    unpacked().ok_or_else(|| "no sources of libnbd".to_owned())
}

enum Verdict {
    Passed,
    NotForUs,
    Failed,
}

/// What automake's test driver wrote down of each test of a folder.
fn results(folder: &Path) -> Result<Vec<(String, Verdict)>> {
    let mut found = Vec::new();
    for path in fs::read_dir(folder).map_err(|error| error.to_string())?.flatten().map(|entry| entry.path()) {
        if path.extension().is_none_or(|extension| extension != "trs") {
            continue;
        }
        let result = fs::read_to_string(&path).unwrap_or_default();
        let log = fs::read(path.with_extension("log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let excused = EXCUSED.iter().any(|(test, _)| *test == name) || log.contains(NO_COUNTERPART);
        let verdict = match result.contains(":test-result: PASS") {
            true if log.contains(SERVED) => Verdict::Passed,
            false if log.contains(SERVED) && !excused => Verdict::Failed,
            _ => Verdict::NotForUs,
        };
        found.push((name, verdict));
    }
    found.sort_by(|one, other| one.0.cmp(&other.0));
    Ok(found)
}
