//! Debian's packages as a source of files: downloaded once, taken apart, and not installed.

use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

/// The files of a package, in `target/packages`, where it is downloaded to if it is not there; a skip of `test` where it
/// cannot be had.
///
/// # Panics
/// When it cannot be had and the run is [`crate::strict`].
pub fn files(test: &str, package: &str) -> Option<PathBuf> {
    if !crate::have_peers(test, &["apt-get", "dpkg-deb"]) {
        return None;
    }
    match unpacked(package) {
        Ok(folder) => Some(folder),
        Err(why) => {
            assert!(!crate::strict(), "{test} needs the package {package}: {why}");
            crate::skip(test, &why);
            None
        }
    }
}

fn unpacked(package: &str) -> Result<PathBuf, String> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/packages");
    let _lock = locked(&folder)?;
    let whole = folder.join(package);
    if !whole.exists() {
        let new = format!("{package}.new");
        download(&folder, package, &new)?;
        std::fs::rename(folder.join(new), &whole).map_err(|error| format!("{}: {error}", whole.display()))?;
    }
    Ok(whole)
}

/// A folder, made where it is not, that other tests keep out of until the file is closed.
pub(crate) fn locked(folder: &Path) -> Result<std::fs::File, String> {
    std::fs::create_dir_all(folder).map_err(|error| format!("{}: {error}", folder.display()))?;
    let lock = folder.join("lock");
    let said = |error: &dyn std::fmt::Display| format!("{}: {error}", lock.display());
    let file = std::fs::File::create(&lock).map_err(|error| said(&error))?;
    flock(&file, FlockOperation::LockExclusive).map_err(|error| said(&error))?;
    Ok(file)
}

/// Brings a package into `folder`, and takes it apart into `folder/to`, whatever was there.
pub(crate) fn download(folder: &Path, package: &str, to: &str) -> Result<(), String> {
    run(folder, Command::new("apt-get").args(["download", "-qq", package]))?;
    let mut debs = folder.read_dir().map_err(|error| error.to_string())?.flatten().map(|entry| entry.path());
    let deb = debs.find(|path| path.extension().is_some_and(|end| end == "deb")).ok_or("apt-get brought no package")?;
    let _ = std::fs::remove_dir_all(folder.join(to));
    run(folder, Command::new("dpkg-deb").arg("-x").arg(&deb).arg(to))?;
    std::fs::remove_file(&deb).map_err(|error| error.to_string())
}

/// What a command writes, in a folder.
pub(crate) fn run(folder: &Path, command: &mut Command) -> Result<String, String> {
    let output = command.current_dir(folder).output().map_err(|error| format!("{command:?}: {error}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", crate::text(&output).trim().replace('\n', "; "))),
    }
}
