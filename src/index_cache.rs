//! Indexes of compressed images, kept for the next time: `$XDG_CACHE_HOME/loopbox`, else `~/.cache/loopbox`.
//!
//! ```text
//! ~/.cache/loopbox/             mode 0700
//!   index-5f00d1e51a2b3c4d      of one image, whole, and never changed
//!   index-5f00d1e51a2b3c4d.new  in the making, and locked meanwhile
//! ```
//!
//! What is in an index belongs to a file of one size, one time of its last change, and one first and last part; another
//! file, or the same one changed, gets another. Nothing is kept of what was decrypted on the way, or lies on top of
//! other files.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use backing::{FileBacking, Memory, Open};
use block::layer::Unflushed;
use block::{Error, Kind, ReadAt as _, Result, ResultExt as _, Storage};
use format::compressed::{self, Build, Compressed};
use format::probe::Format;
use format::spec::{self, Step};
use indicatif::ProgressBar;

use crate::{print, progress};

/// The most bytes that all indexes take together, where `LOOPBOX_CACHE_MAX` does not say another number.
const CACHE_BYTES_MAX: u64 = 16 << 30;
/// What begins and ends a file tells it from others.
const END_BYTES: u64 = 64 << 10;
/// A bar is shown when it takes longer than this.
const PATIENCE: Duration = Duration::from_millis(400);
/// What an index in memory may take, where there is no folder to keep it in.
const MEMORY_BYTES_MAX: u64 = 512 << 20;

/// The disk in a compressed file; its index is taken from the cache, or built. `below` is what is stacked between
/// `backing`, the file, and `image`. Where it is read `once`, from one end to the other, a disk is not decompressed for
/// another time.
///
/// # Errors
/// Those of the format. That the cache cannot be used is none.
pub fn open(
    image: Arc<dyn Storage>,
    format: Format,
    backing: &FileBacking,
    below: &[Step],
    once: bool,
) -> Result<Compressed> {
    let name = if is_of_file(below) { name(backing, format, below)? } else { Vec::new() };
    let kept = if name.is_empty() { None } else { Folder::of_user() };
    // What is found out about xz and zstd is in the file already, unless the disk is kept with it.
    let passing = once && format != Format::Gzip;
    let done = kept.map(
        |folder| {
            if passing { folder.find(&image, format, &name) } else { folder.open(&image, format, &name) }
        },
    );
    match done {
        Some(Ok(found)) => {
            warn_if_slow(&found);
            return Ok(found);
        }
        // Whatever is wrong with the folder: it works without, only not as fast the next time.
        Some(Err(error)) if !passing && is_of_folder(&error) => {
            print::warning(&format!("the cache cannot be used: {}", print::error_text(&error)));
        }
        Some(Err(error)) if !passing => return Err(error),
        _ => {}
    }
    let room: Arc<dyn Storage> = Arc::new(Memory::with_room(0, MEMORY_BYTES_MAX)?);
    build(&image, &*room, format, &name, 0)?;
    let found = Compressed::open(image, room, format, &name)?;
    if !passing {
        warn_if_slow(&found);
    }
    Ok(found)
}

fn is_of_folder(error: &Error) -> bool {
    matches!(error.kind(), Kind::NoSpace | Kind::Denied | Kind::ReadOnly | Kind::NotPermitted)
}

fn warn_if_slow(device: &Compressed) {
    if let Some(gap) = device.slow() {
        print::warning(&format!(
            "its compression has no place to begin at for {}, so that reading is slow: compress it in blocks (xz \
             --block-size=8MiB; zstd splits with pzstd), or let the cache have more room (LOOPBOX_CACHE_MAX)",
            print::size(gap)
        ));
    }
}

/// Whether what is read depends on the one file alone, and is not a secret.
fn is_of_file(below: &[Step]) -> bool {
    use Step::{Block, Direct, Offset, Partition, ReadOnly, ReadWrite, SizeLimit};
    below.iter().all(|step| {
        matches!(
            step,
            ReadOnly
                | ReadWrite
                | Partition(_)
                | Offset(_)
                | SizeLimit(_)
                | Direct
                | Block(_)
                | Step::Format(Format::Raw)
        )
    })
}

/// What tells an image from another, and from itself after a change.
fn name(backing: &FileBacking, format: Format, below: &[Step]) -> Result<Vec<u8>> {
    if backing.is_block_device() {
        return Ok(Vec::new());
    }
    let what = || backing.path().display().to_string();
    let file = backing.file().metadata().context(what)?;
    let mut bytes = vec![0; backing.size().min(END_BYTES) as usize];
    let mut sum = 0_u64;
    for at in [0, backing.size() - bytes.len() as u64] {
        backing.read_at(&mut bytes, at)?;
        sum = sum.rotate_left(1) ^ hash(&bytes);
    }
    let steps = spec::Spec { path: PathBuf::new(), steps: below.to_vec() }.to_os_string();
    let text = format!(
        "{} {} {} {} {}.{:09} {sum:016x} {}",
        format.name(),
        file.dev(),
        file.ino(),
        file.len(),
        file.mtime(),
        file.mtime_nsec(),
        steps.display()
    );
    Ok(text.into_bytes())
}

/// Builds an index, with a bar where it takes long.
fn build(image: &Arc<dyn Storage>, room: &dyn Storage, format: Format, name: &[u8], keep: u64) -> Result<()> {
    let begun = Instant::now();
    let mut bar: Option<Option<ProgressBar>> = None;
    let size = image.size();
    let mut progress = |bytes: u64| {
        if bar.is_none() && begun.elapsed() > PATIENCE {
            bar = Some(progress::bytes_bar(size, false).inspect(|bar| bar.set_message("reading it once")));
        }
        if let Some(Some(bar)) = &bar {
            bar.set_position(bytes);
        }
    };
    let done =
        compressed::build(image, room, &mut Build { format, name, keep_bytes_max: keep, progress: &mut progress });
    if let Some(Some(bar)) = &bar {
        bar.finish_and_clear();
    }
    done
}

/// Where indexes are kept.
struct Folder {
    path: PathBuf,
    bytes_max: u64,
}

impl Folder {
    /// The folder of this user, made where it is missing; none where there is none, or where others write into it.
    fn of_user() -> Option<Self> {
        let bytes_max = match std::env::var("LOOPBOX_CACHE_MAX") {
            Ok(text) => spec::size_bytes(&text).unwrap_or_else(|| {
                print::warning(&format!("LOOPBOX_CACHE_MAX={}: no size", print::escaped(text.as_bytes())));
                CACHE_BYTES_MAX
            }),
            Err(_) => CACHE_BYTES_MAX,
        };
        if bytes_max == 0 {
            return None;
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let above = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")))?;
        let path = above.join("loopbox");
        DirBuilder::new().recursive(true).mode(0o700).create(&path).ok()?;
        let metadata = path.symlink_metadata().ok().filter(std::fs::Metadata::is_dir)?;
        let own = metadata.uid() == rustix::process::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
        own.then_some(Self { path, bytes_max })
    }

    fn index(&self, name: &[u8]) -> PathBuf {
        self.path.join(format!("index-{:016x}", hash(name)))
    }

    /// The disk of `image`, by an index that is there.
    fn find(&self, image: &Arc<dyn Storage>, format: Format, name: &[u8]) -> Result<Compressed> {
        let room: Arc<dyn Storage> = Arc::new(FileBacking::open(self.index(name), Open::READ)?);
        Compressed::open(Arc::clone(image), room, format, name)
    }

    /// The disk of `image`, by an index of the folder.
    fn open(&self, image: &Arc<dyn Storage>, format: Format, name: &[u8]) -> Result<Compressed> {
        let path = self.index(name);
        let open = || self.find(image, format, name);
        // One that is broken, or was there before the image became another one, is built again.
        let (found, mut new) = match open() {
            Ok(found) => (Some(found), None),
            Err(_) => {
                let new = New::lock(&path)?;
                // Another may have built it while this one waited.
                (open().ok(), Some(new))
            }
        };
        if let Some(found) = found {
            if let Some(new) = new.take() {
                new.remove();
            }
            let now = std::fs::FileTimes::new().set_modified(SystemTime::now());
            // What was used last goes last.
            let _ = File::options().write(true).open(&path).and_then(|file| file.set_times(now));
            return Ok(found);
        }
        let Some(new) = new else { return open() };
        let done = self.fill(&new, image, format, name, &path);
        if done.is_err() {
            new.remove();
        }
        done.and_then(|()| open())
    }

    fn fill(&self, new: &New, image: &Arc<dyn Storage>, format: Format, name: &[u8], path: &Path) -> Result<()> {
        let what = || new.path.display().to_string();
        new.file.set_len(0).context(what)?;
        self.shrink(self.bytes_max / 2, path);
        let free = rustix::fs::statvfs(&self.path).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let keep = (free / 2).min(self.bytes_max / 2);
        let file = new.file.try_clone().context(what)?;
        let room = Unflushed::new(FileBacking::new(file, &new.path, Open { lock: false, ..Open::WRITE })?);
        build(image, &room, format, name, keep)?;
        std::fs::rename(&new.path, path).context(what)
    }

    /// Removes what was not used for the longest time, until no more than `bytes` are left.
    fn shrink(&self, bytes: u64, but: &Path) {
        let entries = std::fs::read_dir(&self.path).into_iter().flatten().flatten();
        let mut found: Vec<(SystemTime, u64, PathBuf)> = entries
            .filter(|entry| entry.file_name().as_encoded_bytes().starts_with(b"index-"))
            .filter_map(|entry| {
                let metadata = entry.metadata().ok()?;
                Some((metadata.modified().ok()?, metadata.blocks().saturating_mul(512), entry.path()))
            })
            .collect();
        found.sort();
        let mut all: u64 = found.iter().map(|(_, bytes, _)| bytes).sum();
        for (_, size, path) in found {
            if all <= bytes {
                return;
            }
            let is_new = path.extension().is_some_and(|extension| extension == "new");
            // One that is being built is locked by who builds it.
            let idle = !is_new || File::open(&path).is_ok_and(|file| file.try_lock().is_ok());
            if path != but && idle && std::fs::remove_file(&path).is_ok() {
                all = all.saturating_sub(size);
            }
        }
    }
}

/// An index in the making.
struct New {
    file: File,
    path: PathBuf,
}

impl New {
    /// Waits until nobody else builds it.
    fn lock(index: &Path) -> Result<Self> {
        let path = index.with_extension("new");
        let what = || path.display().to_string();
        loop {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(false).mode(0o600);
            let file = file.open(&path).context(what)?;
            if file.try_lock().is_err() {
                print::warning("another loopbox reads this image for the first time: waiting for its index");
                file.lock().context(what)?;
            }
            // Who had it before may have given it its name, or taken it away.
            let (own, there) = (file.metadata().context(what)?, std::fs::metadata(&path));
            if there.is_ok_and(|there| (there.dev(), there.ino()) == (own.dev(), own.ino())) {
                return Ok(Self { file, path });
            }
        }
    }

    fn remove(&self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A number for a name (FNV-1a): what is in the index is compared as well.
fn hash(name: &[u8]) -> u64 {
    name.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3))
}

/// That a compressed image takes no writes, in words that help.
///
/// # Errors
/// [`Kind::ReadOnly`] where the spec asks for them.
pub fn refuse_writes(steps: &[Step], format: Format) -> Result<()> {
    if steps.contains(&Step::ReadWrite) && !steps.iter().any(|step| matches!(step, Step::Overlay(_))) {
        let context = format!(
            "rw: a disk compressed by {} is only read; `overlay` takes writes beside it, `loopbox convert` unpacks it",
            format.name()
        );
        return Err(Error::new(Kind::ReadOnly, context));
    }
    Ok(())
}
