//! `loopbox create`: a new image.

use std::path::{Path, PathBuf};

use backing::FileBacking;
use block::{Error, Kind, ReadAt as _, ResultExt as _};
use format::luks::{self, Hash};
use format::probe::Format;
use format::qcow2::{self, Compression};
use format::sequential::{Image, New, Style};
use format::spec::{Spec, Step, size_bytes};

use super::key::{Derivation, random};
use super::{Result, Status};
use crate::inside::now;
use crate::part::{Existing, Part};
use crate::stack::{Access, Stack};
use crate::{passphrase, print};

mod filled;

/// Make a new image, empty and sparse: raw, or qcow2, VHD, VHDX, VMDK or VDI when its name ends so; with --luks2 an encrypted one; with --fs one
/// with a file system, and --from with files in it.
///
/// The same files and options give the same image, byte for byte: entries are sorted, what needs a time takes the latest
/// one of the files, UUIDs are computed. With SOURCE_DATE_EPOCH set, no time is later than that.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples: `loopbox create disk.img --size 10G`, `loopbox create disk.qcow2 --size 1T`,\n\
                        `loopbox create changes.qcow2 --backing golden.qcow2`,\n\
                        `loopbox create card.img --fs fat --from photos --partition mbr`.\n\nAn encrypted image is 16 MiB larger than what it holds. It is opened as `IMAGE,luks`, and by \
                        `cryptsetup open IMAGE NAME`.")]
pub struct Args {
    /// The file, which must not exist yet.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// What it holds: bytes, or a number with K, M, G, T (1024) or KB, MB, GB, TB (1000); not needed with --backing, nor
    /// with --from: then as much as the files need.
    #[arg(long, value_name = "SIZE", value_parser = size, required_unless_present_any = ["backing", "from"])]
    size: Option<u64>,

    /// The image that it lies on top of, whose content it shows until it is written to (qcow2).
    #[arg(long, value_name = "FILE")]
    backing: Option<PathBuf>,

    #[command(flatten)]
    like: Like,

    #[command(flatten)]
    filled: filled::Filled,

    /// A label: of the file system, or of the encrypted volume.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    label: String,

    /// Encrypt it with LUKS2; its passphrase is asked for twice, or read from --key-file.
    #[arg(long)]
    luks2: bool,

    #[command(flatten)]
    encryption: Encryption,
}

/// What a new image is like.
#[derive(Debug, clap::Args)]
pub struct Like {
    /// Its format: raw, qcow2, vhd (vpc), vhdx, vmdk or vdi; without this, as its name ends.
    #[arg(short, long, value_name = "FORMAT")]
    format: Option<String>,

    /// Which kind of it: dynamic or fixed (VHD), monolithicSparse or streamOptimized (VMDK); the first without this.
    #[arg(long, value_name = "NAME")]
    subformat: Option<String>,

    /// Bytes of a cluster (qcow2): 64K unless said otherwise.
    #[arg(long, value_name = "BYTES")]
    cluster: Option<String>,

    /// How clusters are compressed: deflate or zstd (qcow2).
    #[arg(long, value_name = "NAME")]
    compression: Option<String>,
}

impl Like {
    /// The format that was asked for, or that the name says.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for one that is not made.
    pub fn format(&self, file: &Path) -> block::Result<Format> {
        let ending = file.extension().and_then(|ending| ending.to_str()).unwrap_or_default().to_ascii_lowercase();
        let word = match &self.format {
            Some(word) => word.as_str(),
            None if ending == "qcow2" || ending == "qcow" => "qcow2",
            None if format::image::format_of(&ending).is_some_and(|format| format != Format::Raw) => &ending,
            None => "raw",
        };
        match format::image::format_of(word) {
            Some(format) => Style::of(format, self.subformat.as_deref()).map(|_| format),
            None => Err(Error::new(Kind::Invalid, format!("format \"{word}\": raw, qcow2, vhd, vhdx, vmdk or vdi"))),
        }
    }

    /// The qcow2 that was asked for.
    ///
    /// # Errors
    /// [`Kind::Invalid`].
    pub fn qcow2(&self, size: u64) -> block::Result<qcow2::Create> {
        let mut what = qcow2::Create::new(size);
        if let Some(text) = &self.cluster {
            let bytes = size_bytes(text).and_then(|bytes| u32::try_from(bytes).ok());
            what.cluster_bytes = bytes.ok_or_else(|| Error::new(Kind::Invalid, format!("--cluster {text}")))?;
        }
        what.compression = match self.compression.as_deref() {
            None | Some("deflate" | "zlib") => Compression::Deflate,
            Some("zstd") => Compression::Zstd,
            Some(other) => {
                return Err(Error::new(Kind::Invalid, format!("--compression {other}: deflate or zstd")));
            }
        };
        Ok(what)
    }

    /// That nothing was asked for that only a qcow2 has.
    ///
    /// # Errors
    /// [`Kind::Invalid`].
    pub fn refuse_for(&self, format: Format) -> block::Result<()> {
        let asked = self.cluster.is_some() || self.compression.is_some();
        if format != Format::Qcow2 && asked {
            return Err(Error::new(Kind::Invalid, "--cluster and --compression are for qcow2: say --format qcow2"));
        }
        Ok(())
    }

    /// The format that was asked for, and what it has of its own.
    ///
    /// # Errors
    /// [`Kind::Unsupported`]; [`Kind::Invalid`].
    pub fn style(&self, file: &Path, compress: bool) -> block::Result<Style> {
        let format = self.format(file)?;
        self.refuse_for(format)?;
        if format == Format::Qcow2 {
            return Ok(Style::Qcow2 { create: self.qcow2(0)?, compress });
        }
        if compress {
            let context = match format {
                Format::Vmdk => "a VMDK is compressed as --subformat streamOptimized".to_owned(),
                other => format!("a {} cannot be compressed: say --format qcow2", other.name()),
            };
            return Err(Error::new(Kind::Invalid, context));
        }
        Style::of(format, self.subformat.as_deref())
    }

    /// A new image of `size` bytes, for the file of this name.
    ///
    /// # Errors
    /// That there are no random numbers.
    pub fn new_image(&self, file: &Path, style: Style, size: u64) -> block::Result<New> {
        let mut id = [0; 16];
        random(&mut id)?;
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let seconds = u64::try_from(now().seconds).unwrap_or_default();
        Ok(New { size, style, id: u128::from_le_bytes(id), seconds, name })
    }
}

/// How a new image is encrypted.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Encryption")]
pub struct Encryption {
    /// The passphrase is all bytes of this file (-: standard input).
    #[arg(long, value_name = "FILE", requires = "luks2")]
    key_file: Option<PathBuf>,

    /// The cipher.
    #[arg(long, value_name = "NAME", default_value = "aes-xts-plain64", requires = "luks2")]
    cipher: String,

    /// Bits of the key (of XTS, of both together).
    #[arg(long, value_name = "BITS", default_value_t = 512, requires = "luks2")]
    key_size: usize,

    /// Bytes of a sector: 512 to 4096.
    #[arg(long, value_name = "BYTES", default_value_t = 4096, requires = "luks2")]
    sector_size: u32,

    #[command(flatten)]
    derivation: Derivation,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    size_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "not a size such as 64M or 10G".to_owned())
}

/// Makes it; nothing is left of one that cannot be made.
pub fn run(args: &Args) -> Result {
    let format = args.like.format(&args.image)?;
    if args.filled.file_system.is_some() {
        return filled::run(args, format);
    }
    if !args.label.is_empty() && !args.luks2 {
        return Err(Error::new(Kind::Invalid, "--label is for a file system or an encrypted image: say --fs").into());
    }
    let size = |size: Option<u64>| size.ok_or_else(|| Error::new(Kind::Invalid, "no size"));
    if format == Format::Qcow2 {
        if args.luks2 {
            let context = "LUKS inside of qcow2: encrypt a raw image";
            return Err(Error::new(Kind::Unsupported, context).into());
        }
        let backing = args.backing.as_deref().map(|path| open_backing(args, path)).transpose()?;
        let size = size(args.size.or(backing.as_ref().map(|(_, _, size)| *size)))?;
        let what = qcow2::Create { backing: backing.map(|(name, format, _)| (name, format)), ..args.like.qcow2(size)? };
        let file = FileBacking::create(&args.image, 0)?;
        qcow2::create(&file, &what).context(|| args.image.display().to_string()).inspect_err(|_| {
            let _ = std::fs::remove_file(&args.image);
        })?;
        return Ok(Status::Done);
    }
    args.like.refuse_for(format)?;
    if args.backing.is_some() {
        let context = format!("a {} lies on top of nothing: say --format qcow2", format.name());
        return Err(Error::new(Kind::Invalid, context).into());
    }
    let size = size(args.size)?;
    if format != Format::Raw {
        if args.luks2 {
            let context = format!("LUKS inside of {}: encrypt a raw image", format.name());
            return Err(Error::new(Kind::Unsupported, context).into());
        }
        let part = Part::new(&args.image, Existing::Refuse)?;
        let style = args.like.style(&args.image, false)?;
        Image::begin(&part, &args.like.new_image(&args.image, style, size)?)?.finish()?;
        part.finish()?;
        return Ok(Status::Done);
    }
    if args.luks2 {
        return encrypted(args, size);
    }
    FileBacking::create(&args.image, size)?;
    Ok(Status::Done)
}

fn encrypted(args: &Args, size: u64) -> Result {
    let what = || format!("image {}", args.image.display());
    let encryption = &args.encryption;
    let wanted = luks::Create {
        cipher: encryption.cipher.clone(),
        key_bytes: encryption.key_size / 8,
        sector_bytes: encryption.sector_size,
        kdf: encryption.derivation.kdf(2, Hash::Sha256),
        label: args.label.clone(),
        detached: false,
    };
    if args.image.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::Exists, format!("{} exists already", what())).into());
    }
    let passphrase = passphrase::new(encryption.key_file.as_deref(), &args.image.display().to_string())?;
    let whole = size.checked_next_multiple_of(4096).and_then(|size| size.checked_add(luks::DATA_BYTE));
    let whole = whole.ok_or_else(|| Error::new(Kind::Limit, format!("a size of {size} bytes")))?;
    let device = FileBacking::create(&args.image, whole)?;
    match luks::create(&device, &wanted, &passphrase, &random) {
        Ok(header) => {
            print::line(&header.uuid)?;
            Ok(Status::Done)
        }
        Err(error) => {
            let _ = std::fs::remove_file(&args.image);
            Err(error).context(what)?
        }
    }
}

/// Name, format and size of what is to lie below.
fn open_backing(args: &Args, path: &Path) -> block::Result<(String, String, u64)> {
    let mut spec = Spec::of_path(path);
    // To learn its size: that it is used as a backing file is what the user says here.
    spec.steps.push(Step::Backing(None));
    let stack = Stack::open(&spec, Access::Read)?;
    let format = stack.image.as_ref().map_or(Format::Raw, |(container, _)| container.format);
    let here = |path: &Path| {
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        std::fs::canonicalize(parent).context(|| parent.display().to_string())
    };
    let (of_image, of_backing) = (here(&args.image)?, here(path)?);
    let name = path.file_name().unwrap_or_default();
    let name = if of_image == of_backing { PathBuf::from(name) } else { of_backing.join(name) };
    let name = name.to_str().ok_or_else(|| Error::new(Kind::Invalid, "a backing file whose name is no UTF-8"))?;
    // QEMU's word.
    let word = if format == Format::Vhd { "vpc" } else { format.name() };
    Ok((name.to_owned(), word.to_owned(), stack.device.size()))
}
