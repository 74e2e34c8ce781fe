//! `loopbox create --fs`: a new image with a file system, and files in it.

use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use backing::{FileBacking, Open};
use block::layer::{Unflushed, Window};
use block::{BlockDevice, Error, Kind, ResultExt as _, Storage};
use format::partition::Scheme;
use format::partition::create as table;
use format::probe::Format;
use format::qcow2::{self, Qcow2};
use fs::folder::Folder;
use fs::make::tree::{self, Tree};
use fs::make::{Made, Make, Type};
use fs::path::LastLink;
use fs::{FileSystem, Inode, Time};

use super::super::key::random;
use super::super::{Result, Status};
use super::Args;
use crate::inside::{Inside, now};
use crate::part::{Existing, Part};
use crate::progress::ShownMade;

/// What is in a new image.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "File system")]
pub struct Filled {
    /// The file system: ext4, fat (12, 16 or 32, as the size demands), fat32, exfat, iso (with Rock Ridge and Joliet),
    /// squashfs or erofs.
    #[arg(long = "fs", value_name = "NAME", value_parser = clap::builder::PossibleValuesParser::new(Type::NAMES))]
    pub file_system: Option<String>,

    /// What is in it: a directory of this machine, or IMAGE or IMAGE:PATH, a directory of another image.
    #[arg(long, value_name = "DIR", requires = "file_system")]
    from: Option<OsString>,

    /// A partition table around it, of one partition: gpt or mbr.
    #[arg(long, value_name = "TABLE", requires = "file_system", value_parser = scheme)]
    partition: Option<Scheme>,

    /// User and group of all files, by number; without this, those that they have.
    #[arg(long, value_name = "UID:GID", requires = "file_system", value_parser = owner)]
    owner: Option<(u32, u32)>,

    /// No progress bar.
    #[arg(short, long)]
    quiet: bool,
}

fn scheme(text: &str) -> std::result::Result<Scheme, String> {
    match text {
        "gpt" => Ok(Scheme::Gpt),
        "mbr" | "dos" => Ok(Scheme::Mbr),
        _ => Err("gpt or mbr".to_owned()),
    }
}

fn owner(text: &str) -> std::result::Result<(u32, u32), String> {
    let numbers = text.split_once(':').and_then(|(uid, gid)| Some((uid.parse().ok()?, gid.parse().ok()?)));
    numbers.ok_or_else(|| "two numbers, as in 0:0".to_owned())
}

/// SOURCE_DATE_EPOCH (reproducible-builds.org/specs/source-date-epoch).
fn source_date_epoch() -> block::Result<Option<Time>> {
    let Some(text) = std::env::var_os("SOURCE_DATE_EPOCH").filter(|text| !text.is_empty()) else { return Ok(None) };
    match text.to_str().and_then(|text| text.parse().ok()) {
        Some(seconds) => Ok(Some(Time { seconds, nanoseconds: 0 })),
        None => Err(Error::new(Kind::Invalid, format!("SOURCE_DATE_EPOCH {}: no number of seconds", text.display()))),
    }
}

/// Where the files come from.
fn source(from: Option<&OsString>) -> block::Result<(Arc<dyn FileSystem>, Inode)> {
    let Some(from) = from else {
        // Nothing is read from it: the tree is empty.
        let nothing: Arc<dyn FileSystem> = Arc::new(Folder::open(Path::new("/"))?);
        let root = nothing.root();
        return Ok((nothing, root));
    };
    if Path::new(from).is_dir() {
        let folder: Arc<dyn FileSystem> = Arc::new(Folder::open(Path::new(from))?);
        let root = folder.root();
        return Ok((folder, root));
    }
    let inside = Inside::open(from, LastLink::Follow)?;
    Ok((inside.fs, inside.inode))
}

/// Makes it; the file has its name only when it is whole.
pub fn run(args: &Args, format: Format) -> Result {
    let filled = &args.filled;
    let name = filled.file_system.as_deref().unwrap_or_default();
    let known = Type::NAMES.join(", ");
    let file_system = Type::of_name(name)
        .ok_or_else(|| Error::new(Kind::Unsupported, format!("--fs {name}: loopbox makes {known}")))?;
    if args.luks2 || args.backing.is_some() {
        let text =
            "--fs with --luks2 or --backing: make the image first, and the file system in it once it is attached";
        return Err(Error::new(Kind::Unsupported, text).into());
    }
    match format {
        Format::Raw => args.like.refuse_for(Format::Raw)?,
        Format::Qcow2 => {}
        other => {
            let text = format!("a file system in a new {}: make it raw or qcow2, and convert that", other.name());
            return Err(Error::new(Kind::Unsupported, text).into());
        }
    }
    let part = Part::new(&args.image, Existing::Refuse)?;
    let epoch = source_date_epoch()?;
    let (source, start) = source(filled.from.as_ref())?;
    let options = tree::Options { time_max: epoch, owner: filled.owner };
    let tree = match &filled.from {
        Some(from) => Tree::read(&*source, start, options).context(|| from.display().to_string())?,
        None => Tree::empty(epoch.unwrap_or_else(now)),
    };
    // What the same input must give again is computed; what is new each time is not.
    let computed = filled.from.is_some() || epoch.is_some();
    let id = |what: &str| -> block::Result<u128> {
        let size = args.size.unwrap_or_default().to_string();
        let mut number = [0; 16];
        if !computed {
            random(&mut number)?;
            return Ok(tree::uuid(u128::from_le_bytes(number)));
        }
        Ok(tree.fingerprint(&[what, name, &args.label, &size]))
    };
    let make = Make {
        file_system,
        label: args.label.clone(),
        id: id("file system")?,
        time: epoch.unwrap_or_else(|| tree.newest()),
        start_bytes: if filled.partition.is_some() { table::ALIGN_BYTES } else { 0 },
    };
    let place = Place::of(&make, &tree, filled.partition, args.size)?;
    let ids = match filled.partition {
        Some(_) => (id("disk")?, id("partition")?),
        None => (0, 0),
    };
    let shown = ShownMade::new(tree.bytes(), !filled.quiet);
    let image = Image { args, part: &part, make: &make, tree: &tree, source: &*source, place, ids };
    let made = image.write(format, &shown);
    shown.finish();
    let made = made?;
    part.finish()?;
    Ok(if made.left_out > 0 { Status::No } else { Status::Done })
}

/// Where the file system is on the disk.
#[derive(Debug, Clone, Copy)]
struct Place {
    start: u64,
    size: u64,
    /// Bytes of the disk, or the most that it may have.
    disk: u64,
    table: Option<Scheme>,
    /// The disk is as large as what is in it.
    shrinks: bool,
}

impl Place {
    fn of(make: &Make, tree: &Tree, table: Option<Scheme>, size: Option<u64>) -> block::Result<Self> {
        let start = make.start_bytes;
        let tail = table.map_or(0, table::tail_bytes);
        let too_small =
            || Error::new(Kind::Invalid, format!("a size of {} bytes: too small", size.unwrap_or_default()));
        let (size, disk, shrinks) = match size {
            Some(disk) => {
                let size = disk.checked_sub(start).and_then(|rest| rest.checked_sub(tail)).ok_or_else(too_small)?;
                (size / 512 * 512, disk, false)
            }
            None => {
                let size = make.size(tree)?.next_multiple_of(512);
                (size, start + size + tail, !make.file_system.has_size())
            }
        };
        if size == 0 {
            return Err(too_small());
        }
        Ok(Self { start, size, disk, table, shrinks })
    }
}

struct Image<'a> {
    args: &'a Args,
    part: &'a Part,
    make: &'a Make,
    tree: &'a Tree,
    source: &'a dyn FileSystem,
    place: Place,
    /// Of the disk and of the partition.
    ids: (u128, u128),
}

impl Image<'_> {
    fn file(&self) -> block::Result<FileBacking> {
        FileBacking::new(self.part.file()?, &self.args.image, Open::WRITE)
    }

    fn write(&self, format: Format, shown: &ShownMade) -> block::Result<Made> {
        if format == Format::Qcow2 {
            let file: Arc<dyn Storage> = Arc::new(Unflushed::new(self.file()?));
            qcow2::create(&file, &self.args.like.qcow2(self.place.disk)?)?;
            let disk: Arc<dyn BlockDevice> = Arc::new(Qcow2::open(file, None)?);
            let made = self.file_system(Arc::clone(&disk), shown)?;
            self.table(&*disk, self.place.size)?;
            disk.flush()?;
            return Ok(made);
        }
        let set_size = |bytes: u64| {
            self.part.file()?.set_len(bytes).context(|| format!("{}: {bytes} bytes", self.args.image.display()))
        };
        set_size(self.place.disk)?;
        let made = self.file_system(Arc::new(Unflushed::new(self.file()?)), shown)?;
        let mut size = self.place.size;
        if self.place.shrinks {
            size = made.bytes.next_multiple_of(512);
            let tail = self.place.table.map_or(0, table::tail_bytes);
            set_size(self.place.start + size + tail)?;
        }
        let disk = self.file()?;
        self.table(&disk, size)?;
        disk.flush()?;
        Ok(made)
    }

    fn file_system(&self, disk: Arc<dyn BlockDevice>, shown: &ShownMade) -> block::Result<Made> {
        let window: Arc<dyn BlockDevice> = Arc::new(Window::new(disk, self.place.start, self.place.size)?);
        let made = self.make.write(self.tree, self.source, &window, shown).map_err(|error| {
            if error.kind() == Kind::NoSpace && self.args.size.is_some() {
                return error.context("--size: too small for the files (left out, it is as large as they need)");
            }
            error
        })?;
        Ok(made)
    }

    fn table(&self, disk: &dyn BlockDevice, size_bytes: u64) -> block::Result<()> {
        let Some(scheme) = self.place.table else { return Ok(()) };
        let (mbr_type, gpt_type) = self.make.file_system.partition_types();
        let partition = table::New {
            start_byte: self.place.start,
            size_bytes,
            mbr_type,
            gpt_type,
            id: self.ids.1,
            name: self.args.label.clone(),
        };
        table::Create { scheme, id: self.ids.0, partitions: vec![partition] }.write(disk)
    }
}
