//! Where a user's registry is: a folder that nobody else can enter.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::user;
use block::{Error, Kind, Result, ResultExt as _};

/// The folder of this user, made where it is missing: `$XDG_RUNTIME_DIR/loopbox`, else `/run/loopbox` for root, else
/// `/tmp/loopbox-UID`.
///
/// # Errors
/// `Denied` when somebody else owns what has its name, or may enter it; that of making it.
pub fn of_user() -> Result<PathBuf> {
    let user = rustix::process::geteuid().as_raw();
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    if let Some(runtime) = runtime.filter(|path| path.is_absolute() && check(path, user).is_ok()) {
        let path = runtime.join("loopbox");
        make(&path).context(|| format!("folder {}", path.display()))?;
        check(&path, user)?;
        return Ok(path);
    }
    if user == 0 {
        let path = PathBuf::from("/run/loopbox");
        // The root of a user namespace may not, and is an ordinary user outside.
        if make(&path).is_ok() && check(&path, user).is_ok() {
            return Ok(path);
        }
    }
    let path = PathBuf::from(format!("/tmp/loopbox-{}", user::outside(user)));
    make(&path).context(|| format!("folder {}", path.display()))?;
    check(&path, user)?;
    Ok(path)
}

fn make(path: &Path) -> std::io::Result<()> {
    match std::fs::DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// That it is a folder, no link, of `user`, and closed to everybody else.
fn check(path: &Path, user: u32) -> Result<()> {
    let found = std::fs::symlink_metadata(path).context(|| format!("folder {}", path.display()))?;
    let what = if !found.is_dir() {
        "is no folder"
    } else if found.uid() != user {
        "belongs to another user"
    } else if found.mode() & 0o077 != 0 {
        "is open to other users"
    } else {
        return Ok(());
    };
    Err(Error::new(Kind::Denied, format!("{} {what}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_others_can_change_is_refused() {
        use std::os::unix::fs::PermissionsExt as _;
        let scratch = tempfile::tempdir().unwrap();
        let user = rustix::process::geteuid().as_raw();
        let path = scratch.path().join("folder");
        make(&path).unwrap();
        make(&path).unwrap();
        check(&path, user).unwrap();
        assert_eq!(check(&path, user + 1).unwrap_err().kind(), Kind::Denied);
        std::os::unix::fs::symlink(&path, scratch.path().join("link")).unwrap();
        assert_eq!(check(&scratch.path().join("link"), user).unwrap_err().kind(), Kind::Denied);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o750)).unwrap();
        assert_eq!(check(&path, user).unwrap_err().kind(), Kind::Denied);
    }
}
