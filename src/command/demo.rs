//! `loopbox demo`: the main job on a small real disc image, each step as the command that a user would type.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use block::{Error, Kind, ResultExt as _};
use sys::namespace::{UnshareFlags, unshare};

use super::{Result, Status};
use crate::print::{self, Style};

/// The disc: the project's own documents, with Rock Ridge and Joliet. `cargo xtask demo-image` makes it.
const DISC: &[u8] = include_bytes!("../../test_data/demo.iso");

/// Show the main job on a small disc image: each command as you would type it, and what it prints.
#[derive(Debug, clap::Args)]
#[command(after_help = "Exit status: 0 when each step worked, 1 when one did not.")]
pub struct Args {}

/// Runs the steps in a temporary folder that is gone afterwards.
pub fn run(_: &Args) -> Result {
    let root = rustix::process::geteuid().is_root();
    let mut note = None;
    if !root && !installed("fusermount3") && !installed("fusermount") {
        // Without fusermount3 an ordinary user mounts in a namespace: the demo moves into one of its own.
        let moved = enter_namespace().is_ok();
        note = moved.then_some("(no fusermount3 here: the demo runs in a user namespace, as `unshare -Urm` makes one)");
    }
    let demo = Demo::new()?;
    print::line("loopbox demo: a disc image, looked into, mounted and attached.")?;
    print::line(&format!("Each command can be typed as it stands, in a folder with the image {IMAGE}.\n"))?;
    if let Some(note) = note {
        print::line(&print::styled(Style::Dim, note))?;
    }
    let mut failed = 0;
    let mut step = |why: &str, commands: &[&str]| -> std::io::Result<()> {
        print::line(&print::styled(Style::Dim, &format!("# {why}")))?;
        for command in commands {
            print::line(&print::styled(Style::Bold, &format!("$ {command}")))?;
            if !demo.run(command)? {
                failed += 1;
            }
        }
        print::line("")
    };
    step("What is in it, and what can be done with it here", &["loopbox info demo.iso"])?;
    step(
        "Looked into: no mount, no FUSE, no privilege",
        &["loopbox ls -l demo.iso:/", "loopbox cat demo.iso:/start-here | head -n 4"],
    )?;
    step("Copied out, with modes, times and links", &["loopbox cp demo.iso:/docs copy", "ls -l copy"])?;
    let missing = super::doctor::fuse_is_missing();
    match &missing {
        Some(why) => print::line(&format!("No mount and no disk in user space here: {why}.\n"))?,
        None => step("Mounted without root (--user: from user space, whoever you are)", MOUNT)?,
    }
    let attach = if root { "loopbox attach demo.iso" } else { "loopbox attach --user demo.iso" };
    let why = if root {
        "Attached: the image is a disk, on the kernel's loop driver where there is one"
    } else {
        "Attached without root: the image is a disk"
    };
    if missing.is_none() || export::loop_device::Control::open().is_ok() {
        step(why, &[attach, "loopbox list", "loopbox detach --all"])?;
    }
    drop(demo);
    if failed == 0 {
        print::line(&print::styled(Style::Good, "All of it worked, and is gone again."))?;
        return Ok(Status::Done);
    }
    let text = format!("{failed} commands did not work here: `loopbox doctor` says what would change that.");
    print::line(&print::styled(Style::Bad, &text))?;
    Ok(Status::No)
}

const MOUNT: &[&str] = &[
    "mkdir disc",
    "loopbox mount --user demo.iso disc",
    "ls disc",
    "head -n 4 disc/docs/overlay.md",
    "loopbox umount disc",
];

/// The name of the image in the folder of the demo.
const IMAGE: &str = "demo.iso";

fn installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| folder.join(program).exists())
}

/// Moves this process into a user and a mount namespace, as the same user.
fn enter_namespace() -> block::Result<()> {
    let (user, group) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    unshare(UnshareFlags::NEWUSER | UnshareFlags::NEWNS).context(|| "a user namespace")?;
    let write = |file: &str, text: String| std::fs::write(file, text).context(|| format!("writing {file}"));
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("0 {user} 1"))?;
    write("/proc/self/gid_map", format!("0 {group} 1"))
}

/// A folder with the image in it, and a registry of its own, so that `detach --all` touches nothing else.
struct Demo {
    folder: PathBuf,
}

impl Demo {
    fn new() -> block::Result<Self> {
        use std::os::unix::fs::DirBuilderExt as _;
        let temporary = std::env::temp_dir();
        for attempt in 0..100 {
            let folder = temporary.join(format!("loopbox-demo-{}-{attempt}", std::process::id()));
            match std::fs::DirBuilder::new().mode(0o700).create(&folder) {
                Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => continue,
                other => other.context(|| format!("making the folder {}", folder.display()))?,
            }
            let demo = Self { folder };
            let image = demo.folder.join(IMAGE);
            std::fs::write(&image, DISC).context(|| format!("writing {}", image.display()))?;
            let runtime = demo.runtime();
            std::fs::DirBuilder::new()
                .mode(0o700)
                .create(&runtime)
                .context(|| format!("making the folder {}", runtime.display()))?;
            // `loopbox` in what is shown is this very program.
            let link = demo.folder.join("bin");
            std::fs::create_dir(&link).context(|| format!("making the folder {}", link.display()))?;
            let program = std::env::current_exe().context(|| "the path of this program")?;
            std::os::unix::fs::symlink(program, link.join("loopbox")).context(|| "a link to this program")?;
            return Ok(demo);
        }
        Err(Error::new(Kind::Exists, format!("a hundred folders loopbox-demo-* in {}", temporary.display())))
    }

    fn runtime(&self) -> PathBuf {
        self.folder.join("runtime")
    }

    /// Runs a line of shell and prints what it prints; whether it ended well.
    fn run(&self, line: &str) -> std::io::Result<bool> {
        let output = self.command("sh").arg("-c").arg(format!("{line} 2>&1")).output()?;
        print::bytes(&output.stdout)?;
        Ok(output.status.success())
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        let folders = std::iter::once(self.folder.join("bin")).chain(std::env::split_paths(&path));
        if let Ok(path) = std::env::join_paths(folders) {
            command.env("PATH", path);
        }
        command.env("XDG_RUNTIME_DIR", self.runtime()).current_dir(&self.folder).stdin(Stdio::null());
        command
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        // What a step that failed left behind.
        for words in [["umount", "--all"], ["detach", "--all"]] {
            let mut command = self.command(&self.folder.join("bin/loopbox").to_string_lossy());
            let _ = command.args(words).stdout(Stdio::null()).stderr(Stdio::null()).status();
        }
        let _ = std::io::stdout().flush();
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder) {
        print::warning(&format!("{} stays: {error}", folder.display()));
    }
}
