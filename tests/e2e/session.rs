//! One user's session with loopbox: a folder and a registry of its own, and all given back at the end.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

use rig::{Scratch, User};

/// The program that is tested, where every user can run it.
pub fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let built = Path::new(env!("CARGO_BIN_EXE_loopbox"));
        let reachable = |folder: &Path| folder.metadata().is_ok_and(|m| m.permissions().mode() & 0o001 != 0);
        if built.ancestors().skip(1).all(reachable) {
            return built.to_path_buf();
        }
        // A checkout that only root can enter: a copy that is renewed in one step, for test runs side by side.
        let folder = std::env::temp_dir().join(format!("loopbox-e2e-{}", rustix::process::geteuid().as_raw()));
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
        let copy = folder.join("loopbox");
        let fresh = folder.join(format!("loopbox.{}", std::process::id()));
        std::fs::copy(built, &fresh).unwrap();
        std::fs::rename(&fresh, &copy).unwrap();
        copy
    })
}

/// A user with a folder and a registry of its own. Dropping it takes away whatever it still holds.
#[derive(Debug)]
pub struct Session {
    user: User,
    scratch: Scratch,
}

impl Session {
    /// A new one; its folder's name begins with `name`.
    pub fn new(user: User, name: &str) -> Self {
        let scratch = Scratch::of(user, name);
        let session = Self { user, scratch };
        rig::run_command(session.command("mkdir").args(["-m", "700"]).arg(session.runtime()));
        session
    }

    fn runtime(&self) -> PathBuf {
        self.scratch.join("runtime")
    }

    /// A file of the session's folder.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.scratch.join(name)
    }

    /// A peer, run by the session's user.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.user.command(program);
        command.env("XDG_RUNTIME_DIR", self.runtime()).env("XDG_CACHE_HOME", self.scratch.join("cache"));
        command
    }

    /// `loopbox`, ready to be given its words.
    pub fn loopbox(&self) -> Command {
        self.command(program())
    }

    /// Runs `loopbox WORDS` and returns what it printed to standard output.
    ///
    /// # Panics
    /// When it does not exit with 0.
    pub fn done<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        rig::run_command(self.loopbox().args(words))
    }

    /// Runs lines of a shell in the folder, up to the first that fails, and returns what they printed.
    ///
    /// # Panics
    /// When one fails.
    pub fn shell(&self, lines: &str) -> String {
        rig::run_command(self.command("sh").args(["-ec", lines]).current_dir(self.join(".")))
    }

    /// The path of a file of the folder, as a word.
    pub fn word(&self, name: &str) -> String {
        self.join(name).display().to_string()
    }

    /// Runs `loopbox WORDS`, whatever comes of it.
    pub fn output<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Output {
        rig::output(self.loopbox().args(words))
    }

    /// Runs `loopbox WORDS`, which must fail with exit status 2 and one line; returns the line.
    ///
    /// # Panics
    /// When it does not.
    pub fn fails<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> String {
        let output = self.output(words);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{}", rig::text(&output));
        assert_eq!(said.lines().count(), 1, "more than one line: {said}");
        said
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // Only what a failed test left: a test that passes has given everything back itself.
        for words in [["umount", "--all"], ["detach", "--all"]] {
            let _ = rig::output(self.loopbox().args(words));
        }
    }
}
