//! A spec becomes a device: the one place where layers are put together.
//!
//! ```text
//! disk.img,offset=1M,partition=2,ro
//! ───┬──── ────┬──── ─────┬───── ┬─
//!    file    window     window   read only          order typed = order stacked
//! ```
//!
//! A file that begins like an image format is opened as that before all else, unless `format=` says what it is.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use backing::{FileBacking, Memory, Open};
use block::layer::overlay::Layout;
use block::layer::{Fixed, Overlay, ReadOnly, Window};
use block::{BlockDevice, Error, Kind, ReadAt, Result, ResultExt as _, Storage};
use format::compressed;
use format::gate::{self, Gate};
use format::image::{self, Details};
use format::luks;
use format::probe::{Container, Format, probe};
use format::spec::{self, Spec, Step};

use crate::{index_cache, passphrase, print};

/// What a command wants to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Only read, and once, from one end to the other: nothing is made ready for another time.
    ReadOnce,
    /// Write too, where the file and the spec allow it; read otherwise.
    WriteIfPossible,
}

/// A spec, opened.
#[derive(Debug, Clone)]
pub struct Stack {
    /// What it was made from.
    pub spec: Spec,
    /// The file at the bottom.
    pub backing: Arc<FileBacking>,
    /// The device at the top.
    pub device: Arc<dyn BlockDevice>,
    /// First byte of the file that is byte 0 of the device, where the device is nothing but a part of the file.
    pub start_byte: Option<u64>,
    /// The image format that the file was opened as, where it is one.
    pub image: Option<(Container, Details)>,
}

impl Stack {
    /// Opens the file and stacks what the spec asks for.
    ///
    /// # Errors
    /// That of opening, with the name of the image; [`Kind::Denied`] or [`Kind::ReadOnly`] where `rw` was asked for and
    /// is not possible; what a layer says of what is below it.
    pub fn open(spec: &Spec, access: Access) -> Result<Self> {
        let backing = Arc::new(open_backing(spec, access)?);
        let formats = spec.steps.iter().filter(|step| matches!(step, Step::Format(_))).count();
        // The tables of an image inside of another are read here and there.
        let access = if access == Access::ReadOnce && formats > 1 { Access::Read } else { access };
        let mut device: Arc<dyn BlockDevice> = backing.clone();
        let mut start_byte = Some(0_u64);
        let mut image = None;
        let what = || spec.to_string();
        if let Some(format) = format_found(spec, &backing)? {
            let (above, found) = open_found(spec, &backing, format, access).context(what)?;
            (device, start_byte, image) = (above, None, Some(found));
        }
        for (n, step) in spec.steps.iter().enumerate() {
            if let Step::Format(format) = step {
                if *format != Format::Raw {
                    let storage: Arc<dyn Storage> =
                        if n == 0 { Arc::clone(&backing) as _ } else { Arc::new(Fixed::new(device)) };
                    let mut container = probe(&storage).context(what)?;
                    let below = spec.steps.get(..n).unwrap_or_default();
                    let opened = open_image(spec, storage, *format, &backing, (below, access)).context(what)?;
                    container.virtual_bytes.get_or_insert(opened.device.size());
                    image = Some((container, opened.details));
                    (device, start_byte) = (opened.device, None);
                }
                continue;
            }
            let (above, start) = stacked(device, step, spec, access).context(what)?;
            device = above;
            start_byte = start_byte.zip(start).and_then(|(below, start)| below.checked_add(start));
        }
        Ok(Self { spec: spec.clone(), backing, device, start_byte, image })
    }

    /// First byte and length of the part of the file that the device is, as the loop driver counts them (length 0: to
    /// the end of the file); `None` where it is more than that.
    pub fn place(&self) -> Option<(u64, u64)> {
        let start = self.start_byte?;
        let to_the_end = self.device.size() == self.backing.size().checked_sub(start)?;
        Some((start, if to_the_end { 0 } else { self.device.size() }))
    }

    /// The regular file that the device is, from the first byte to the last, read through the page cache.
    pub fn whole_file(&self) -> Option<OwnedFd> {
        let is_it =
            self.place() == Some((0, 0)) && !self.backing.is_block_device() && !self.spec.steps.contains(&Step::Direct);
        self.backing.file().filter(|_| is_it)?.try_clone_to_owned().ok()
    }
}

/// The image format that a file is opened as when nobody says what it is.
fn format_found(spec: &Spec, backing: &FileBacking) -> Result<Option<Format>> {
    if spec.steps.iter().any(|step| matches!(step, Step::Format(_))) {
        return Ok(None);
    }
    let found = probe(backing).context(|| spec.to_string())?;
    Ok(Some(found.format).filter(|format| image::is_read(*format) || compressed::is_read(*format)))
}

/// What a file was found to be; what is compressed may be an image itself.
fn open_found(
    spec: &Spec,
    backing: &Arc<FileBacking>,
    format: Format,
    access: Access,
) -> Result<(Arc<dyn BlockDevice>, (Container, Details))> {
    let opened = open_image(spec, Arc::clone(backing) as _, format, backing, (&[], access))?;
    let mut container = probe(&**backing)?;
    container.virtual_bytes.get_or_insert(opened.device.size());
    if !format.is_compressed() {
        return Ok((opened.device, (container, opened.details)));
    }
    let inner = probe(&opened.device)?;
    if !image::is_read(inner.format) {
        return Ok((opened.device, (container, opened.details)));
    }
    // The tables of an image are read here and there.
    let opened = match access {
        Access::ReadOnce => open_image(spec, Arc::clone(backing) as _, format, backing, (&[], Access::Read))?,
        _ => opened,
    };
    let mut image = open_image(spec, Arc::new(Fixed::new(opened.device)), inner.format, backing, (&[], access))?;
    image.details.features.push(format!("compressed as a whole by {}", format.name()));
    image.details.features.extend(opened.details.features);
    Ok((image.device, (inner, image.details)))
}

/// Whether the spec's file is a disk byte by byte: what the kernel's loop driver can serve.
pub fn is_plain(spec: &Spec) -> bool {
    let formats: Vec<_> = spec.steps.iter().filter(|step| matches!(step, Step::Format(_))).collect();
    match formats.as_slice() {
        [] => FileBacking::open(&spec.path, Open::READ)
            .and_then(|backing| format_found(spec, &backing))
            .is_ok_and(|format| format.is_none()),
        formats => formats.iter().all(|step| **step == Step::Format(Format::Raw)),
    }
}

/// Opens for an image what the user allows: files named in it after `backing`, another in place of the first after
/// `backing=FILE`.
#[derive(Debug)]
struct Files {
    allowed: bool,
    first: Option<std::path::PathBuf>,
}

impl Files {
    fn of(spec: &Spec) -> Self {
        let first = spec.steps.iter().rev().find_map(|step| match step {
            Step::Backing(file) => file.clone(),
            _ => None,
        });
        Self { allowed: spec.steps.contains(&Step::Backing(None)), first }
    }
}

impl gate::Opener for Files {
    fn open(&self, path: &std::path::Path, depth: usize) -> Result<gate::Opened> {
        let path = match &self.first {
            Some(first) if depth == 1 => first.as_path(),
            _ if self.allowed => path,
            _ => return Err(gate::refused(path)),
        };
        let backing = FileBacking::open(path, Open::READ)?;
        let identity = identity(&backing)?;
        Ok(gate::Opened { storage: Arc::new(backing), identity, path: path.to_owned() })
    }
}

fn identity(backing: &FileBacking) -> Result<gate::Identity> {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = backing.file().metadata().context(|| backing.path().display().to_string())?;
    Ok((metadata.dev(), metadata.ino()))
}

/// What `storage` holds; `below` are the steps between it and the file, and how it is read.
fn open_image(
    spec: &Spec,
    storage: Arc<dyn Storage>,
    format: Format,
    file: &FileBacking,
    below: (&[Step], Access),
) -> Result<image::Image> {
    if compressed::is_read(format) {
        index_cache::refuse_writes(&spec.steps, format)?;
        let device = index_cache::open(storage, format, file, below.0, below.1 == Access::ReadOnce)?;
        let details = Details { features: device.features(), ..Details::default() };
        return Ok(image::Image { device: Arc::new(ReadOnly::new(device)), details });
    }
    let files = Files::of(spec);
    let gate = Gate::new(&files, file.path(), identity(file)?);
    let snapshot = spec.steps.iter().rev().find_map(|step| match step {
        Step::Snapshot(name) => Some(name.as_str()),
        _ => None,
    });
    image::open(storage, format, &gate, snapshot)
}

fn open_backing(spec: &Spec, access: Access) -> Result<FileBacking> {
    let has = |wanted: fn(&Step) -> bool| spec.steps.iter().any(wanted);
    let direct = has(|step| *step == Step::Direct);
    let must = has(|step| *step == Step::ReadWrite);
    let never = has(|step| matches!(step, Step::ReadOnly | Step::Overlay(_)));
    let block = spec.steps.iter().rev().find_map(|step| match step {
        Step::Block(bytes) => Some(*bytes),
        _ => None,
    });
    let reading = Open { direct, block, ..Open::READ };
    if never || (access != Access::WriteIfPossible && !must) {
        return FileBacking::open(&spec.path, reading);
    }
    match FileBacking::open(&spec.path, Open { direct, block, ..Open::WRITE }) {
        Err(error) if !must && matches!(error.kind(), Kind::Denied | Kind::NotPermitted | Kind::ReadOnly) => {
            FileBacking::open(&spec.path, reading)
        }
        other => other,
    }
}

/// One step on top of a device; and which byte of the device is its first, where it is a part of the device.
fn stacked(
    device: Arc<dyn BlockDevice>,
    step: &Step,
    spec: &Spec,
    access: Access,
) -> Result<(Arc<dyn BlockDevice>, Option<u64>)> {
    let window = |start: u64, len: u64| -> Result<(Arc<dyn BlockDevice>, Option<u64>)> {
        Ok((Arc::new(Window::new(Arc::clone(&device), start, len)?), Some(start)))
    };
    let size = device.size();
    match step {
        Step::ReadOnly => Ok((Arc::new(ReadOnly::new(device)), Some(0))),
        Step::Offset(offset) if *offset > size => {
            let context = format!("offset {offset} of an image of {size} bytes");
            Err(Error::new(Kind::OutOfRange, context))
        }
        Step::Offset(offset) => window(*offset, size - offset),
        Step::SizeLimit(0) => Ok((device, Some(0))),
        Step::SizeLimit(limit) => window(0, size.min(*limit)),
        Step::Partition(selector) => {
            let table = format::partition::read(&device)?;
            let table = table.ok_or_else(|| Error::new(Kind::NotFound, "no partition table"))?;
            let partition = table.find(selector, |partition| {
                // One that lies behind the end of the device is not the one that is looked for.
                let Ok((start, len)) = partition.range(size) else { return Ok(Default::default()) };
                let found = fs::identify::identify(&Window::new(Arc::clone(&device), start, len)?)?;
                Ok(found.map(|found| (found.label, found.uuid)).unwrap_or_default())
            })?;
            let (start, len) = partition.range(size)?;
            window(start, len)
        }
        Step::Overlay(None) => {
            let layout = Layout::new(size)?;
            let changes = Memory::new(layout.size())?;
            Ok((Arc::new(Overlay::volatile(device, changes, layout)?), None))
        }
        Step::Overlay(Some(file)) if access != Access::WriteIfPossible => Ok((changed(device, file)?, None)),
        Step::Overlay(Some(file)) => {
            let changes = match FileBacking::open(file, Open::WRITE) {
                Err(error) if error.kind() == Kind::NotFound => FileBacking::create(file, Layout::new(size)?.size())?,
                opened => opened?,
            };
            Ok((Arc::new(Overlay::open_or_create(device, changes)?), None))
        }
        Step::Luks(luks) => Ok((Arc::new(decrypted(device, luks, &spec.path.display().to_string())?), None)),
        // These speak of the file, or of how its bytes are taken, and were heard when it was opened.
        Step::ReadWrite | Step::Direct | Step::Block(_) | Step::Format(_) | Step::Backing(_) | Step::Snapshot(_) => {
            Ok((device, Some(0)))
        }
        other => Err(Error::new(Kind::Unsupported, format!("{other:?}"))),
    }
}

/// A device with the changes that a file holds, to be read: the file is neither made nor locked.
fn changed(device: Arc<dyn BlockDevice>, file: &std::path::Path) -> Result<Arc<dyn BlockDevice>> {
    let changes = match FileBacking::open(file, Open::READ) {
        Err(error) if error.kind() == Kind::NotFound => return Ok(Arc::new(ReadOnly::new(device))),
        opened => opened?,
    };
    Ok(match Overlay::open_if_made(Arc::clone(&device), changes)? {
        Some(overlay) => Arc::new(overlay),
        None => Arc::new(ReadOnly::new(device)),
    })
}

/// The file that holds the header of an encrypted volume, where it is not in front of the data.
///
/// # Errors
/// That of opening it.
pub fn detached_header(luks: &spec::Luks, write: bool) -> Result<Option<FileBacking>> {
    let file = luks.header.as_ref();
    file.map(|file| FileBacking::open(file, if write { Open::WRITE } else { Open::READ })).transpose()
}

/// The plain bytes of an encrypted volume; `what` names it where the user is asked.
fn decrypted(device: Arc<dyn BlockDevice>, luks: &spec::Luks, what: &str) -> Result<luks::Crypt<Arc<dyn BlockDevice>>> {
    let detached = detached_header(luks, false)?;
    let of_header: &dyn ReadAt = detached.as_ref().map_or(&device, |header| header);
    let header = luks::Header::read(of_header)?;
    for problem in &header.problems {
        print::warning(&format!("{what}: {problem}"));
    }
    let unlocked = passphrase::with(luks, what, |typed| header.unlock(of_header, typed, None, &luks::Cost::MAX))?;
    luks::Crypt::new(device, &header.segment, &unlocked.key)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(words: &str) -> Result<Stack> {
        Stack::open(&Spec::parse(words)?, Access::WriteIfPossible)
    }

    fn bytes(stack: &Stack, offset: u64) -> [u8; 4] {
        let mut bytes = [0; 4];
        stack.device.read_at(&mut bytes, offset).unwrap();
        bytes
    }

    /// An image of 64 KiB that counts its 4-byte words.
    fn image(scratch: &rig::Scratch) -> String {
        let content: Vec<u8> = (0..16_384_u32).flat_map(u32::to_be_bytes).collect();
        std::fs::write(scratch.join("disk.img"), content).unwrap();
        scratch.join("disk.img").display().to_string()
    }

    #[test]
    fn the_order_typed_is_the_order_stacked() {
        let scratch = rig::Scratch::new("stack");
        let image = image(&scratch);
        let stack = open(&format!("{image},ro,offset=4K,sizelimit=8K,offset=1K")).unwrap();
        assert_eq!((stack.device.size(), bytes(&stack, 0)), (7 << 10, 1280_u32.to_be_bytes()));
        assert_eq!(stack.start_byte, Some(5 << 10));
        let stack = open(&format!("{image},ro,offset=1K,offset=4K,sizelimit=8K")).unwrap();
        assert_eq!((stack.device.size(), bytes(&stack, 0)), (8 << 10, 1280_u32.to_be_bytes()));
        let error = open(&format!("{image},ro,offset=65K")).unwrap_err();
        assert_eq!(error.kind(), Kind::OutOfRange, "{error:?}");
    }

    #[test]
    fn an_overlay_takes_the_writes_and_the_image_stays_as_it_is() {
        let scratch = rig::Scratch::new("stack");
        let image = image(&scratch);
        let before = std::fs::read(&image).unwrap();
        let kept = format!("{image},overlay={}", scratch.join("changes").display());
        for (words, after_reopening) in [(format!("{image},overlay"), [0, 0, 4, 0]), (kept, *b"mine")] {
            let stack = open(&words).unwrap();
            stack.device.write_at(b"mine", 4096).unwrap();
            assert_eq!(bytes(&stack, 4096), *b"mine");
            assert_eq!(stack.start_byte, None);
            stack.device.flush().unwrap();
            drop(stack);
            assert_eq!(bytes(&open(&words).unwrap(), 4096), after_reopening, "{words}");
            assert_eq!(std::fs::read(&image).unwrap(), before);
        }
    }

    #[test]
    fn what_is_only_read_stays_so() {
        let scratch = rig::Scratch::new("stack");
        let image = image(&scratch);
        let stack = open(&format!("{image},ro,block=4096")).unwrap();
        assert_eq!(stack.device.write_at(b"x", 0).unwrap_err().kind(), Kind::ReadOnly);
        assert_eq!((stack.device.limits().read_only, stack.device.limits().block), (true, 4096));
        assert!(!open(&image).unwrap().device.limits().read_only);
        assert!(Stack::open(&Spec::parse(&image).unwrap(), Access::Read).unwrap().device.limits().read_only);
    }
}
