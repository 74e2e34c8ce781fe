//! Random operations on a file system that is written, and on a plain tree in memory; both must answer the same.
//!
//! What is compared: whether each operation succeeds, or by which kind of error it fails; and, now and then, all names
//! and the content of all files.

use std::collections::BTreeMap;

use block::{Kind, Result};

use crate::path::{LastLink, resolve};
use crate::walk::{Next, Order, Step, walk};
use crate::{FileType, Inode, Time, Writable};

/// One operation on paths, the components between slashes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// A new file.
    Create(String),
    /// A new directory.
    MakeDirectory(String),
    /// So many bytes of this value at this offset.
    Write(String, u64, usize, u8),
    /// A new size.
    Truncate(String, u64),
    /// A file goes.
    Remove(String),
    /// A directory goes.
    RemoveDirectory(String),
    /// A file or a directory has another name, and replaces what has that name.
    Rename(String, String),
}

/// What the operations are tried on.
pub trait Target {
    /// Does it.
    ///
    /// # Errors
    /// Its kind is compared.
    fn apply(&self, operation: &Operation) -> Result<()>;

    /// Whether a name can be changed into itself in another case; not through a kernel, for which both are one file.
    fn changes_case(&self) -> bool {
        true
    }

    /// All that is there: paths, and the content of files (`None` for directories).
    fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>>;
}

/// A tree in memory whose names are the same in either case, as those of FAT are (ASCII only).
#[derive(Debug, Default)]
pub struct Model {
    /// By path in lower case: the path as it is written, and the content of a file.
    files: BTreeMap<String, (String, Option<Vec<u8>>)>,
}

fn split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

impl Model {
    fn parent(&self, path: &str) -> std::result::Result<String, Kind> {
        let (parent, _) = split(path);
        if parent.is_empty() {
            return Ok(String::new());
        }
        // The innermost part that is there decides.
        let (above, _) = split(parent);
        if !above.is_empty() {
            self.parent(parent)?;
        }
        match self.files.get(&parent.to_lowercase()) {
            Some((written, None)) => Ok(format!("{written}/")),
            Some(_) => Err(Kind::NotDirectory),
            None => Err(Kind::NotFound),
        }
    }

    fn make(&mut self, path: &str, content: Option<Vec<u8>>) -> std::result::Result<(), Kind> {
        let parent = self.parent(path)?;
        let key = path.to_lowercase();
        if self.files.contains_key(&key) {
            return Err(Kind::Exists);
        }
        self.files.insert(key, (format!("{parent}{}", split(path).1), content));
        Ok(())
    }

    fn file(&mut self, path: &str) -> std::result::Result<&mut Vec<u8>, Kind> {
        self.parent(path)?;
        match self.files.get_mut(&path.to_lowercase()) {
            Some((_, Some(content))) => Ok(content),
            Some(_) => Err(Kind::IsDirectory),
            None => Err(Kind::NotFound),
        }
    }

    fn is_directory(&self, path: &str) -> std::result::Result<bool, Kind> {
        self.parent(path)?;
        self.files.get(&path.to_lowercase()).map(|(_, content)| content.is_none()).ok_or(Kind::NotFound)
    }

    fn is_empty(&self, path: &str) -> bool {
        let inside = format!("{}/", path.to_lowercase());
        !self.files.keys().any(|key| key.starts_with(&inside))
    }

    /// Does it here.
    ///
    /// # Errors
    /// The kind that the other one is to answer, too.
    pub fn apply(&mut self, operation: &Operation) -> std::result::Result<(), Kind> {
        match operation {
            Operation::Create(path) => self.make(path, Some(Vec::new())),
            Operation::MakeDirectory(path) => self.make(path, None),
            Operation::Write(path, offset, len, value) => {
                let content = self.file(path)?;
                let (start, end) = (*offset as usize, *offset as usize + *len);
                if content.len() < end && *len > 0 {
                    content.resize(end, 0);
                }
                content.iter_mut().skip(start).take(*len).for_each(|byte| *byte = *value);
                Ok(())
            }
            Operation::Truncate(path, size) => {
                self.file(path)?.resize(*size as usize, 0);
                Ok(())
            }
            Operation::Remove(path) => match self.is_directory(path)? {
                true => Err(Kind::IsDirectory),
                false => {
                    self.files.remove(&path.to_lowercase());
                    Ok(())
                }
            },
            Operation::RemoveDirectory(path) => match self.is_directory(path)? {
                false => Err(Kind::NotDirectory),
                true if !self.is_empty(path) => Err(Kind::NotEmpty),
                true => {
                    self.files.remove(&path.to_lowercase());
                    Ok(())
                }
            },
            Operation::Rename(from, to) => self.rename(from, to),
        }
    }

    fn rename(&mut self, from: &str, to: &str) -> std::result::Result<(), Kind> {
        self.parent(from)?;
        let parent = self.parent(to)?;
        let is_directory = self.is_directory(from)?;
        let (old, new) = (from.to_lowercase(), to.to_lowercase());
        if is_directory && new.starts_with(&format!("{old}/")) {
            return Err(Kind::Invalid);
        }
        let mut name = split(to).1.to_owned();
        if old != new
            && let Ok(other) = self.is_directory(to)
        {
            match (is_directory, other) {
                (true, false) => return Err(Kind::NotDirectory),
                (false, true) => return Err(Kind::IsDirectory),
                (true, true) if !self.is_empty(to) => return Err(Kind::NotEmpty),
                _ => {}
            }
            // What is replaced keeps the case of its name.
            name = split(&self.files[&new].0).1.to_owned();
            self.files.remove(&new);
        }
        let inside = format!("{old}/");
        let keys: Vec<_> = self.files.keys().filter(|key| **key == old || key.starts_with(&inside)).cloned().collect();
        let written = format!("{parent}{name}");
        let before = self.files[&old].0.len();
        for key in keys {
            let (path, content) = self.files.remove(&key).unwrap();
            let path = format!("{written}{}", &path[before..]);
            self.files.insert(path.to_lowercase(), (path, content));
        }
        Ok(())
    }

    /// All that is there.
    pub fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        self.files.values().cloned().collect()
    }
}

/// Numbers that depend on a seed alone.
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// A number below `below`.
    pub fn below(&mut self, below: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 20) % below
    }

    /// An index below `below`.
    pub fn index(&mut self, below: usize) -> usize {
        self.below(below as u64) as usize
    }

    fn name(&mut self) -> String {
        const NAMES: &[&str] = &[
            "a",
            "B.TXT",
            "b.txt",
            "Long name with blanks.text",
            "README.MD",
            "readme.md",
            "ünïcode",
            "日本",
            "dir",
            "DIR",
            "sub.d",
            "x",
        ];
        match self.below(20) {
            0 => "n".repeat(1 + self.below(200) as usize),
            1..6 => format!("file number {}", self.below(30)),
            _ => NAMES[self.below(NAMES.len() as u64) as usize].to_owned(),
        }
    }

    fn path(&mut self) -> String {
        (0..=self.below(3)).map(|_| self.name()).collect::<Vec<_>>().join("/")
    }

    /// A path, one that is there for the most part.
    fn known(&mut self, model: &Model) -> String {
        let there = model.files.len() as u64;
        if there == 0 || self.below(8) == 0 {
            return self.path();
        }
        model.files.values().nth(self.below(there) as usize).unwrap().0.clone()
    }

    /// The next operation; offsets and sizes up to `most` bytes.
    pub fn operation(&mut self, model: &Model, most: u64) -> Operation {
        let new = |random: &mut Self| {
            let above = random.known(model);
            if random.below(3) > 0 && above.len() < 800 && model.is_directory(&above) == Ok(true) {
                format!("{above}/{}", random.name())
            } else {
                random.path()
            }
        };
        match self.below(20) {
            0..4 => Operation::Create(new(self)),
            4..7 => Operation::MakeDirectory(new(self)),
            7..12 => {
                let len = [0, 1, 511, 512, 4096, 5000, 30_000][self.below(7) as usize];
                Operation::Write(self.known(model), self.below(most), len, 1 + self.below(255) as u8)
            }
            12..14 => Operation::Truncate(self.known(model), self.below(most)),
            14..16 => Operation::Remove(self.known(model)),
            16 => Operation::RemoveDirectory(self.known(model)),
            _ => Operation::Rename(self.known(model), new(self)),
        }
    }
}

/// Runs `count` operations on `target` and on a model, and compares; all of it after every `each`. `NoSpace` is an answer
/// that the model never gives, after which both go on as before.
///
/// # Panics
/// When they differ.
pub fn check(target: &dyn Target, seed: u64, count: usize, each: usize, most: u64) {
    let (mut random, mut model) = (Random::new(seed), Model::default());
    for step in 0..count {
        let operation = random.operation(&model, most);
        if let Operation::Rename(from, to) = &operation
            && !target.changes_case()
            && from.to_lowercase() == to.to_lowercase()
        {
            continue;
        }
        let answer = target.apply(&operation).map_err(|error| error.kind());
        if answer == Err(Kind::NoSpace) {
            continue;
        }
        let expected = model.apply(&operation);
        assert_eq!(answer, expected, "seed {seed}, step {step}: {operation:?}");
        if step % each == each - 1 || step + 1 == count {
            compare(&target.tree(), &model.tree(), &format!("seed {seed}, step {step}: {operation:?}"));
        }
    }
}

/// That two trees are the same.
///
/// # Panics
/// When they differ.
pub fn compare(found: &BTreeMap<String, Option<Vec<u8>>>, expected: &BTreeMap<String, Option<Vec<u8>>>, when: &str) {
    let names = |tree: &BTreeMap<String, Option<Vec<u8>>>| tree.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(expected), "{when}");
    for (path, content) in found {
        let other = &expected[path];
        if content != other {
            let len = |content: &Option<Vec<u8>>| content.as_ref().map(Vec::len);
            let pairs = content.iter().flatten().zip(other.iter().flatten());
            let at = pairs.clone().position(|(a, b)| a != b);
            panic!("{when}: {path}: {:?} bytes, not {:?}; first difference at {at:?}", len(content), len(other));
        }
    }
}

/// A file system that is written, by paths.
#[derive(Debug)]
pub struct ByPath<W>(pub W);

impl<W: Writable> ByPath<W> {
    fn at(&self, path: &str) -> Result<Inode> {
        resolve(&self.0, path.as_bytes(), LastLink::Keep)
    }
}

impl<W: Writable> Target for ByPath<W> {
    fn apply(&self, operation: &Operation) -> Result<()> {
        let fs = &self.0;
        let now = Time { seconds: 1_600_000_000, nanoseconds: 0 };
        let parent = |path| self.at(&format!("{}/", split(path).0));
        let name = |path| split(path).1.as_bytes();
        match operation {
            Operation::Create(path) => fs.create(parent(path)?, name(path), FileType::Regular, now).map(drop),
            Operation::MakeDirectory(path) => fs.create(parent(path)?, name(path), FileType::Directory, now).map(drop),
            Operation::Write(path, offset, len, value) => fs.write(self.at(path)?, &vec![*value; *len], *offset, now),
            Operation::Truncate(path, size) => fs.truncate(self.at(path)?, *size, now),
            Operation::Remove(path) => fs.remove(parent(path)?, name(path), false, now),
            Operation::RemoveDirectory(path) => fs.remove(parent(path)?, name(path), true, now),
            Operation::Rename(from, to) => fs.rename((parent(from)?, name(from)), (parent(to)?, name(to)), true, now),
        }
    }

    fn tree(&self) -> BTreeMap<String, Option<Vec<u8>>> {
        let mut tree = BTreeMap::new();
        walk(&self.0, self.0.root(), Order::Directory, &mut |step| {
            let text = |path: &[u8]| String::from_utf8(path.to_vec()).unwrap();
            match step {
                Step::Enter(found) if found.path.is_empty() => {}
                Step::Enter(found) => drop(tree.insert(text(found.path), None)),
                Step::File(found) => {
                    let mut content = vec![0xa5; found.stat.size as usize];
                    match self.0.read(found.inode, &mut content, 0) {
                        Ok(read) => assert_eq!(read, content.len(), "{}", text(found.path)),
                        // After a crash one file may be so; it is another one than was written.
                        Err(error) => content = format!("{error:?}").into_bytes(),
                    }
                    drop(tree.insert(text(found.path), Some(content)));
                }
                Step::Leave(_) => {}
                // After a crash a directory may have two names.
                Step::Failed { error, .. } if error.kind() == Kind::Loop => {}
                Step::Failed { path, error } => panic!("{}: {error:?}", text(path)),
            }
            Next::Continue
        });
        tree
    }
}

/// For images that may be broken: forty operations on what is there or not; they may fail, and must end.
pub fn disturb<W: Writable>(files: W, seed: u64) {
    let (files, mut random) = (ByPath(files), Random::new(seed));
    let mut there = Model::default();
    walk(&files.0, files.0.root(), Order::Directory, &mut |step| {
        if let Step::Enter(found) | Step::File(found) = &step
            && let Ok(path) = std::str::from_utf8(found.path)
            && !path.is_empty()
        {
            there.files.insert(path.to_lowercase(), (path.to_owned(), None));
        }
        if there.files.len() < 100 { Next::Continue } else { Next::Stop }
    });
    for _ in 0..40 {
        let _ = files.apply(&random.operation(&there, 100_000));
    }
    let _ = files.0.set_label("LABEL", Time::default());
    let _ = files.0.close();
}
