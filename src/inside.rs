//! `IMAGE[:PATH]` becomes a file system and a path in it.
//!
//! Where no partition is named, the file system on the whole image counts (a hybrid ISO has a partition table too);
//! where there is none, that of the one partition which holds one that loopbox reads. Several are a question that only
//! the user can answer, so the error says what to type.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;

use block::layer::Window;
use block::{BlockDevice, Error, Kind, ReadAt, Result, ResultExt as _};
use format::partition::{self, Role};
use format::spec::{self, Selector, Spec, Step};
use fs::path::{LastLink, resolve};
use fs::{FileSystem, Inode, Stat, Writable};

use crate::print;
use crate::stack::{Access, Stack};

/// A file inside an image.
#[derive(Debug)]
pub struct Inside {
    /// The file system.
    pub fs: Arc<dyn FileSystem>,
    /// The file.
    pub inode: Inode,
    /// The path as typed; empty where none was.
    pub path: Vec<u8>,
    /// The image as typed.
    pub image: OsString,
}

impl Inside {
    /// Opens the image of `text` and finds the path in it.
    ///
    /// # Errors
    /// That of the spec, of opening the image, of its file system, of the path.
    pub fn open(text: &OsStr, last: LastLink) -> Result<Self> {
        let (image, path) = spec::split_path(text, std::path::Path::exists);
        let path = path.map(|path| path.as_bytes().to_vec()).unwrap_or_default();
        let spec = Spec::parse(image)?;
        let stack = Stack::open(&spec, Access::Read)?;
        let fs = file_system(&spec, stack.device, text)?;
        let inode = resolve(&*fs, &path, last).map_err(|error| {
            // The path alone is what a user typed: the kind says what is wrong with it.
            let why = std::io::Error::from_raw_os_error(error.kind().errno());
            let context = format!("{}:{}", image.display(), print::escaped(&path));
            if error.find::<std::io::Error>().is_some() || error.kind() == Kind::Corrupt {
                error.context(context)
            } else {
                Error::new(error.kind(), context).with_source(why)
            }
        })?;
        Ok(Self { fs, inode, path, image: image.to_os_string() })
    }

    /// What is known of the file.
    ///
    /// # Errors
    /// That of the file system, with what was typed.
    pub fn stat(&self) -> Result<Stat> {
        self.fs.stat(self.inode).context(|| self.shown(b""))
    }

    /// A path below the one that was typed, as it can be shown.
    pub fn shown(&self, below: &[u8]) -> String {
        let mut path = self.path.clone();
        if !below.is_empty() {
            if !path.is_empty() && !path.ends_with(b"/") {
                path.push(b'/');
            }
            path.extend_from_slice(below);
        }
        let image = print::escaped(self.image.as_bytes());
        if path.is_empty() { image } else { format!("{image}:{}", print::escaped(&path)) }
    }
}

/// A path inside an image that is to be changed.
#[derive(Debug)]
pub struct Changed {
    /// The file system.
    pub fs: Arc<dyn Writable>,
    /// The path as typed.
    pub path: Vec<u8>,
    /// The image as typed.
    pub image: OsString,
}

impl Changed {
    /// Opens the image of `text`, to be written; a path must be named in it.
    ///
    /// # Errors
    /// That of the spec, of opening the image, of its file system; `ReadOnly` where it is not written.
    pub fn open(text: &OsStr) -> Result<Self> {
        let (image, path) = spec::split_path(text, std::path::Path::exists);
        let path = path.map(|path| path.as_bytes().to_vec()).ok_or_else(|| {
            let image = print::escaped(image.as_bytes());
            Error::new(Kind::Invalid, format!("{image}: name a file in it, as in {image}:/file"))
        })?;
        let mut spec = Spec::parse(image)?;
        if !spec.steps.iter().any(|step| matches!(step, Step::ReadOnly | Step::Overlay(_) | Step::ReadWrite)) {
            // That it cannot be written is the failure, and not that a device takes no writes.
            spec.steps.push(Step::ReadWrite);
        }
        let stack = Stack::open(&spec, Access::WriteIfPossible)?;
        let fs = writable(&spec, stack.device, text)?;
        Ok(Self { fs, path, image: image.to_os_string() })
    }

    /// The directory and the name that the path ends with.
    ///
    /// # Errors
    /// `Invalid` for the root; those of the path above it.
    pub fn parent_and_name(&self) -> Result<(Inode, &[u8])> {
        let wrong = || Error::new(Kind::Invalid, "a path without a name at its end");
        let trimmed = self.path.iter().rposition(|byte| *byte != b'/').and_then(|last| self.path.get(..=last));
        let trimmed = trimmed.ok_or_else(wrong)?;
        let name = fs::path::last_name(trimmed).ok_or_else(wrong)?;
        let above = trimmed.get(..trimmed.len() - name.len()).unwrap_or_default();
        Ok((resolve(&*self.fs, above, LastLink::Follow)?, name))
    }

    /// A second path, in the same image, whether the image is named or not.
    ///
    /// # Errors
    /// `Unsupported` for another image.
    pub fn path_in_it(&self, text: &OsStr) -> Result<Vec<u8>> {
        match spec::split_path(text, std::path::Path::exists) {
            (image, Some(path)) if image == self.image => Ok(path.as_bytes().to_vec()),
            (image, Some(_)) if std::path::Path::new(image).exists() => {
                let text = format!("{}: another image; `loopbox cp` copies out of it, and into it", image.display());
                Err(Error::new(Kind::Unsupported, text))
            }
            _ => Ok(text.as_bytes().to_vec()),
        }
    }

    /// Ends what was done: makes it durable, marks the file system as unmounted, and says of which file a failure is.
    ///
    /// # Errors
    /// That of `done`, or of the flush.
    pub fn close<T>(self, done: Result<T>) -> Result<T> {
        let closed = self.fs.close();
        let shown = || format!("{}:{}", print::escaped(self.image.as_bytes()), print::escaped(&self.path));
        let done = done.map_err(|error| {
            let own = matches!(
                error.kind(),
                Kind::NotFound | Kind::Exists | Kind::NotDirectory | Kind::NotEmpty | Kind::NoSpace
            );
            // The kind says it better than the words for it.
            if own && error.find::<std::io::Error>().is_none() {
                let why = std::io::Error::from_raw_os_error(error.kind().errno());
                Error::new(error.kind(), shown()).with_source(why)
            } else {
                error.context(shown())
            }
        })?;
        closed.context(shown)?;
        Ok(done)
    }
}

/// What the clock says.
pub fn now() -> fs::Time {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    fs::Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

/// The file system that a spec without a word about partitions means; `typed` is the word of the command line that it
/// is from.
///
/// # Errors
/// `Unsupported` where there is none; `Invalid`, with what to type, where several partitions hold one.
pub fn file_system(spec: &Spec, device: Arc<dyn BlockDevice>, typed: &OsStr) -> Result<Arc<dyn FileSystem>> {
    let open = |device: Arc<dyn BlockDevice>| {
        let fs = fs::open(device)?;
        Ok(Found { name: fs.name(), label: fs.label(), holds: fs })
    };
    find(spec, device, typed, &open).map(|(fs, _)| fs)
}

/// The same, to be written.
///
/// # Errors
/// As [`file_system`]; `ReadOnly` where loopbox only reads it, or the image takes no writes.
pub fn writable(spec: &Spec, device: Arc<dyn BlockDevice>, typed: &OsStr) -> Result<Arc<dyn Writable>> {
    let open = |device: Arc<dyn BlockDevice>| {
        let fs = fs::open(device.clone())?;
        Ok(Found { name: fs.name(), label: fs.label(), holds: device })
    };
    let (device, _) = find(spec, device, typed, &open)?;
    fs::open_writable(device).context(|| spec.to_string())
}

/// What a device, or a partition, turned out to hold.
pub struct Found<T> {
    /// Its file system, as `mount -t` has it.
    pub name: &'static str,
    /// Its label; empty where it has none.
    pub label: String,
    /// What the caller wants of it.
    pub holds: T,
}

/// What `open` finds on the whole device, or else on the one partition on which it finds something, and the first byte
/// of the device that is a part of it. `open` answers `Unsupported` where there is nothing that it knows; `typed` as for
/// [`file_system`].
///
/// # Errors
/// As [`file_system`].
pub fn find<T>(
    spec: &Spec,
    device: Arc<dyn BlockDevice>,
    typed: &OsStr,
    open: &dyn Fn(Arc<dyn BlockDevice>) -> Result<Found<T>>,
) -> Result<(T, u64)> {
    let unknown = match open(Arc::clone(&device)) {
        Err(_) if is_encrypted(&device) => return Err(encrypted(spec, None)),
        Err(error) if error.kind() == Kind::Unsupported => error,
        other => return other.map(|found| (found.holds, 0)).context(|| spec.to_string()),
    };
    let Some(table) = partition::read(&*device).context(|| spec.to_string())? else {
        return Err(unknown.context(spec.to_string()));
    };
    let (mut found, mut locked) = (Vec::new(), None);
    for partition in table.partitions.iter().filter(|partition| partition.role != Role::Extended) {
        let Ok((start, len)) = partition.range(device.size()) else { continue };
        let window: Arc<dyn BlockDevice> = Arc::new(Window::new(Arc::clone(&device), start, len)?);
        match open(Arc::clone(&window)) {
            Err(_) if is_encrypted(&window) => locked = locked.or(Some(partition.number)),
            Ok(holds) => found.push((partition, start, holds)),
            // One that is damaged is one that could be meant.
            Err(error) if error.kind() != Kind::Unsupported => {
                if table.partitions.len() == 1 {
                    return Err(error.context(format!("{spec}: partition {}", partition.number)));
                }
            }
            Err(_) => {}
        }
    }
    if found.len() > 1 {
        let ways: Vec<String> = found
            .iter()
            .map(|(partition, _, holds)| {
                let mut named = spec.clone();
                named.steps.push(Step::Partition(Selector::Number(partition.number)));
                let mut word = named.to_os_string();
                if let (_, Some(path)) = spec::split_path(typed, std::path::Path::exists) {
                    word.push(":");
                    word.push(path);
                }
                let label = print::escaped(holds.label.as_bytes());
                let label = if label.is_empty() { label } else { format!(" {label}") };
                let size = print::size(partition.size_bytes);
                format!("`{}` ({}{label}, {size})", command_with(typed, &word), holds.name)
            })
            .collect();
        let context = format!("{spec}: {} partitions hold files, name one: {}", found.len(), ways.join(", "));
        return Err(Error::new(Kind::Invalid, context));
    }
    match found.pop() {
        Some((_, start, found)) => Ok((found.holds, start)),
        None if locked.is_some() => Err(encrypted(spec, locked)),
        None => {
            let numbers: Vec<String> = table
                .partitions
                .iter()
                .map(|partition| {
                    let what = partition.type_name.unwrap_or(&partition.type_id);
                    format!("{} ({what}, {})", partition.number, print::size(partition.size_bytes))
                })
                .collect();
            let list = if numbers.is_empty() { "none".to_owned() } else { numbers.join(", ") };
            let context = format!("{spec}: no partition holds a file system that loopbox reads; partitions: {list}");
            Err(Error::new(Kind::Unsupported, context))
        }
    }
}

/// Whether a LUKS header begins there.
fn is_encrypted(device: &dyn ReadAt) -> bool {
    format::luks::Header::read(device).is_ok()
}

/// What helps where what is looked for is encrypted.
fn encrypted(spec: &Spec, partition: Option<u32>) -> Error {
    let mut named = spec.clone();
    named.steps.extend(partition.map(|number| Step::Partition(Selector::Number(number))));
    named.steps.push(Step::Luks(spec::Luks::default()));
    Error::new(Kind::Unsupported, format!("{spec}: it is encrypted with LUKS: say `{named}`"))
}

/// The command that was typed, with another word in place of `typed`, for a shell.
fn command_with(typed: &OsStr, word: &OsStr) -> String {
    let words = std::env::args_os().skip(1).map(|typed_word| {
        let word = if typed_word == typed { word } else { &typed_word };
        print::for_shell(word.as_bytes())
    });
    std::iter::once("loopbox".to_owned()).chain(words).collect::<Vec<_>>().join(" ")
}
