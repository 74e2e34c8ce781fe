//! A kernel of Debian's, downloaded once: its image and its modules.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::package;

/// Packages that only name another, the newest kernel; the first that the archive has.
const PACKAGES: &[&str] = &["linux-image-6.12-amd64", "linux-image-amd64"];
/// What says that the folder is whole.
const WHOLE: &str = "whole";

/// An extracted kernel.
#[derive(Debug)]
pub struct Kernel {
    /// What boots.
    pub image: PathBuf,
    modules: PathBuf,
}

impl Kernel {
    /// The one in `target/guest`, which is downloaded where there is none.
    ///
    /// # Errors
    /// Why it cannot be had, in one line.
    pub fn get() -> Result<Self, String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("guests are x86-64".to_owned());
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest");
        let _lock = package::locked(&folder)?;
        if !folder.join(WHOLE).exists() {
            download(&folder)?;
        }
        Self::find(&folder.join("kernel")).ok_or_else(|| format!("no kernel in {}", folder.display()))
    }

    fn find(folder: &Path) -> Option<Self> {
        // Newer packages keep modules in /usr/lib.
        let modules = ["lib/modules", "usr/lib/modules"].into_iter().find_map(|path| {
            let versions = folder.join(path).read_dir().ok()?;
            versions.flatten().map(|version| version.path()).next()
        })?;
        let version = modules.file_name()?.to_str()?;
        Some(Self { image: folder.join(format!("boot/vmlinuz-{version}")), modules })
    }

    fn lines(&self, name: &str) -> Vec<String> {
        let text = std::fs::read_to_string(self.modules.join(name)).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// File names and contents of modules, those that others need first.
    ///
    /// # Panics
    /// When there is no such module.
    pub fn modules(&self, wanted: &[String]) -> Vec<(String, Vec<u8>)> {
        let depends: HashMap<String, Vec<String>> = self.lines("modules.dep").iter().filter_map(|l| entry(l)).collect();
        let paths: HashMap<String, &String> = depends.keys().map(|path| (name(path), path)).collect();
        let built_in: Vec<String> = self.lines("modules.builtin").iter().map(|path| name(path)).collect();
        // `softdep NAME pre: NAME … post: NAME …`: what it asks for only when it runs.
        let soft: Vec<Vec<String>> = self
            .lines("modules.softdep")
            .iter()
            .map(|line| line.split_whitespace().map(|word| word.replace('-', "_")).collect())
            .collect();
        let mut order: Vec<&String> = vec![];
        let mut queue: Vec<(String, bool)> = wanted.iter().rev().map(|name| (name.clone(), true)).collect();
        let mut seen = std::collections::HashSet::new();
        while let Some((module, must)) = queue.pop() {
            let Some(path) = paths.get(&module) else {
                assert!(!must || built_in.contains(&module), "no module {module} in {}", self.modules.display());
                continue;
            };
            if seen.insert(module.clone()) {
                queue.push((module.clone(), must));
                for line in soft.iter().filter(|line| line.get(1) == Some(&module)) {
                    let before = line.iter().skip(3).take_while(|word| *word != "post:");
                    queue.extend(before.map(|module| (module.clone(), false)));
                }
                continue;
            }
            for path in depends[*path].iter().rev().chain([*path]) {
                if !order.contains(&path) {
                    order.push(path);
                }
            }
        }
        order.into_iter().map(|path| (format!("{}.ko", name(path)), self.read(path))).collect()
    }

    fn read(&self, path: &str) -> Vec<u8> {
        let file = self.modules.join(path);
        if !path.ends_with(".xz") {
            return std::fs::read(&file).unwrap();
        }
        let output = Command::new("xz").arg("-dc").arg(&file).output().unwrap();
        assert!(output.status.success(), "xz -dc {}: {}", file.display(), crate::text(&output));
        output.stdout
    }
}

/// `kernel/net/sched/sch_netem.ko.xz` is `sch_netem`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or(path);
    file.split('.').next().unwrap_or(file).replace('-', "_")
}

fn entry(line: &str) -> Option<(String, Vec<String>)> {
    let (path, depends) = line.split_once(':')?;
    Some((path.to_owned(), depends.split_whitespace().map(str::to_owned).collect()))
}

fn download(folder: &Path) -> Result<(), String> {
    let named = PACKAGES.iter().find_map(|package| {
        let text = package::run(folder, Command::new("apt-cache").args(["depends", package])).ok()?;
        let depends = text.lines().find_map(|line| line.trim().strip_prefix("Depends: ").map(str::to_owned));
        depends.filter(|package| package.starts_with("linux-image-"))
    });
    let named = named.ok_or("apt knows no linux-image-amd64: `apt-get update` brings its lists")?;
    package::download(folder, &named, "kernel")?;
    let kernel = Kernel::find(&folder.join("kernel")).ok_or("a package without a kernel")?;
    let version = kernel.modules.file_name().unwrap_or_default();
    let depmod = crate::which("depmod").unwrap_or("depmod".into());
    package::run(folder, Command::new(depmod).args(["-b", "kernel"]).arg(version))?;
    std::fs::write(folder.join(WHOLE), "").map_err(|error| error.to_string())
}
