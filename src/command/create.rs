//! `loopbox create`: a new image.

use std::path::PathBuf;

use backing::FileBacking;
use block::{Error, Kind, ResultExt as _};
use format::luks::{self, Hash};
use format::spec::size_bytes;

use super::key::{Derivation, random};
use super::{Result, Status};
use crate::{passphrase, print};

/// Make a new image, empty and sparse; with --luks2 an encrypted one.
#[derive(Debug, clap::Args)]
#[command(after_help = "An encrypted image is 16 MiB larger than what it holds. It is opened as `IMAGE,luks`, and by \
                        `cryptsetup open IMAGE NAME`.")]
pub struct Args {
    /// The file, which must not exist yet.
    #[arg(value_name = "IMAGE")]
    image: PathBuf,

    /// What it holds: bytes, or a number with K, M, G, T (1024) or KB, MB, GB, TB (1000).
    #[arg(long, value_name = "SIZE", value_parser = size)]
    size: u64,

    /// Encrypt it with LUKS2; its passphrase is asked for twice, or read from --key-file.
    #[arg(long)]
    luks2: bool,

    #[command(flatten)]
    encryption: Encryption,
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

    /// A label.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true, requires = "luks2")]
    label: String,

    #[command(flatten)]
    derivation: Derivation,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    size_bytes(text).filter(|bytes| *bytes > 0).ok_or_else(|| "not a size such as 64M or 10G".to_owned())
}

/// Makes it; nothing is left of one that cannot be made.
pub fn run(args: &Args) -> Result {
    let what = || format!("image {}", args.image.display());
    if !args.luks2 {
        FileBacking::create(&args.image, args.size)?;
        return Ok(Status::Done);
    }
    let encryption = &args.encryption;
    let wanted = luks::Create {
        cipher: encryption.cipher.clone(),
        key_bytes: encryption.key_size / 8,
        sector_bytes: encryption.sector_size,
        kdf: encryption.derivation.kdf(2, Hash::Sha256),
        label: encryption.label.clone(),
        detached: false,
    };
    if args.image.symlink_metadata().is_ok() {
        return Err(Error::new(Kind::Exists, format!("{} exists already", what())).into());
    }
    let passphrase = passphrase::new(encryption.key_file.as_deref(), &args.image.display().to_string())?;
    let whole = args.size.checked_next_multiple_of(4096).and_then(|size| size.checked_add(luks::DATA_BYTE));
    let whole = whole.ok_or_else(|| Error::new(Kind::Limit, format!("a size of {} bytes", args.size)))?;
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
