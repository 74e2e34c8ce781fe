//! Trees that the kernel of a guest makes and tells, and the same told by loopbox: to be compared line by line.

use fs::{FileSystem, FileType};

/// Shell functions for the script of a guest, in the folder at hand. `fill` makes all kinds of files, and some of them go
/// away again; `tell WORD` says what is there, each line behind `WORD|`: of each file its path, mode, user, group, bytes,
/// names, major and minor number (in hexadecimal, as the mode) and time, separated by `|`; of regular ones the SHA-256,
/// two blanks and the path; of symbolic ones the path, ` -> ` and the target. `stat` is that of busybox.
pub const FUNCTIONS: &str = r#"
fill() {
    mkdir -p a/b/c many; echo hello > a/hello; ln a/hello a/b/again; ln -s ../a/hello a/relative; ln -s /etc/hostname absolute
    ln -s ../../x/./y odd; : > empty; head -c 100 /dev/urandom > small; head -c 1200000 /dev/urandom > large
    dd if=/dev/urandom of=holes bs=1k count=3 seek=500 2>/dev/null; mkfifo fifo; mknod device c 5 70; mknod disk b 8 17
    for n in 1 2 3 4 5 6 7 8 9; do for m in 1 2 3 4 5 6 7 8 9 0; do echo $n$m > many/file-$n$m-of-90; done; done
    rm many/file-1*; echo anew > many/file-13-of-90
    for n in 1 2 3 4 5; do head -c 9000 /dev/urandom >> grown; head -c 5000 /dev/urandom >> beside; done
    echo ö > 'ünïcödé'; echo 日 > 日本語; echo x > 'with space'
    chmod 4751 a/hello; chmod 1777 many; chown 1000:70000 small
    touch -d '2001-02-03 04:05:06' large a/b/c
}
tell() {
    find . -print0 | xargs -0 stat -c "$1|%n|%f|%u|%g|%s|%h|%t|%T|%Y"
    find . -type f -print0 | xargs -0 sha256sum | sed "s/^/$1|/"
    find . -type l | while read -r link; do echo "$1|$link -> $(readlink "$link")"; done
}
"#;

/// What `tell` said behind a word, sorted.
pub fn told<'a>(output: &'a str, word: &str) -> Vec<&'a str> {
    let prefix = format!("{word}|");
    let mut lines: Vec<&str> = output.lines().filter_map(|line| line.strip_prefix(prefix.as_str())).collect();
    lines.sort_unstable();
    lines
}

/// What it would say of a file system that loopbox reads.
///
/// # Panics
/// When a call fails, or a name is no UTF-8.
pub fn tell(files: &dyn FileSystem) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, file) in crate::tree::of_file_system(files) {
        let path = String::from_utf8(path).unwrap();
        let parts = path.split('/').filter(|part| !part.is_empty());
        let inode = parts.fold(files.root(), |at, name| files.lookup(at, name.as_bytes()).unwrap().unwrap());
        let stat = files.stat(inode).unwrap();
        let shown = if path.is_empty() { ".".to_owned() } else { format!("./{path}") };
        let (major, minor) = file.device.unwrap_or_default();
        let (mode, (uid, gid)) = (file.mode, file.owner);
        let (size, links, seconds) = (stat.size, stat.links, file.modified.seconds);
        lines.push(format!("{shown}|{mode:x}|{uid}|{gid}|{size}|{links}|{major:x}|{minor:x}|{seconds}"));
        match stat.file_type {
            FileType::Regular => lines.push(format!("{}  {shown}", file.sha256.unwrap())),
            FileType::SymbolicLink => {
                lines.push(format!("{shown} -> {}", String::from_utf8(file.target.unwrap()).unwrap()));
            }
            _ => {}
        }
    }
    lines.sort_unstable();
    lines
}

/// The first difference of two trees that were told, where there is one.
pub fn difference(ours: &[impl AsRef<str>], theirs: &[impl AsRef<str>]) -> Option<String> {
    let pairs = ours.iter().map(AsRef::as_ref).zip(theirs.iter().map(AsRef::as_ref));
    let first = pairs.into_iter().find(|(one, other)| one != other);
    (ours.len() != theirs.len() || first.is_some())
        .then(|| format!("{} and {} lines, {first:?}", ours.len(), theirs.len()))
}
