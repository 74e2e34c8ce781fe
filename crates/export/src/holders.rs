//! Who holds a mount: the processes with a file, a working directory, a root or a program below it, as far as this user
//! is allowed to see them.

use std::fmt;
use std::path::Path;

use sys::process::Process;

/// A process that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// Its number.
    pub pid: u32,
    /// Its name.
    pub name: String,
    /// What it holds: `working directory`, `file /mnt/x`.
    pub what: String,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (process {}, {})", self.name, self.pid, self.what)
    }
}

/// The processes that hold something below `point`, each once.
pub fn of(point: &Path) -> Vec<Holder> {
    let mut holders: Vec<Holder> = Process::all()
        .filter_map(|process| {
            let what = held(&process, point)?;
            Some(Holder { pid: process.pid, name: process.name(), what })
        })
        .collect();
    holders.sort_by_key(|holder| holder.pid);
    holders
}

fn held(process: &Process, point: &Path) -> Option<String> {
    // The links are read, never followed: the mount may hang.
    let below = |link: &Path| std::fs::read_link(link).ok().filter(|target| target.starts_with(point));
    for (link, what) in [("cwd", "working directory"), ("root", "root directory"), ("exe", "running program")] {
        if below(&process.folder.join(link)).is_some() {
            return Some(what.to_owned());
        }
    }
    if let Some(file) = process.files().find_map(|link| below(&link)) {
        return Some(format!("file {}", file.display()));
    }
    let maps = std::fs::read_to_string(process.folder.join("maps")).ok()?;
    let mapped = maps.lines().filter_map(|line| line.split_once('/').map(|(_, path)| format!("/{path}")));
    mapped.into_iter().find(|path| Path::new(path).starts_with(point)).map(|path| format!("mapping of {path}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_open_file_is_found() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(of(directory.path()), []);
        let file = directory.path().join("held");
        let held = std::fs::File::create(&file).unwrap();
        let holders = of(directory.path());
        assert_eq!(holders.len(), 1);
        assert_eq!((holders[0].pid, &holders[0].what), (std::process::id(), &format!("file {}", file.display())));
        drop(held);
    }
}
