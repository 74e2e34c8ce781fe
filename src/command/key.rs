//! `loopbox key`: the key slots of an encrypted image.

use std::ffi::OsString;
use std::path::PathBuf;

use backing::FileBacking;
use block::{BlockDevice, Error, Kind, ReadAt, ResultExt as _};
use format::luks::{Cost, Header, Kdf};
use format::spec::{self, Spec, Step};

use super::{Result, Status};
use crate::describe::KeySlot;
use crate::passphrase;
use crate::print::{self, Style, styled};
use crate::stack::{Access, Stack, detached_header};

/// List, add and remove the passphrases (key slots) of an encrypted image: LUKS1 and LUKS2.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "The image is the encrypted one: `disk.img`, or `disk.img,partition=2`; with a detached header, \
                        `data.img,luks,header=FILE`."
)]
pub struct Args {
    #[command(subcommand)]
    action: Action,
}

/// What is done with the key slots.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Show the key slots.
    List(List),
    /// Add a passphrase; one of the old ones is asked for first.
    Add(Add),
    /// Remove a passphrase, and overwrite its key slot.
    Remove(Remove),
}

#[derive(Debug, clap::Args)]
struct List {
    /// The encrypted image.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
struct Add {
    /// The encrypted image.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// The new passphrase is all bytes of this file (-: standard input); without it, it is asked for twice.
    #[arg(long, value_name = "FILE")]
    new_key_file: Option<PathBuf>,

    #[command(flatten)]
    derivation: Derivation,

    #[command(flatten)]
    key: passphrase::KeyFile,
}

#[derive(Debug, clap::Args)]
struct Remove {
    /// The encrypted image.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// The slot; a passphrase of another slot is asked for. Without it, the slot that the passphrase opens.
    #[arg(long, value_name = "NUMBER")]
    slot: Option<u32>,

    /// Ask for no passphrase, and remove even the last slot: nothing opens the image any more then.
    #[arg(long, requires = "slot")]
    force: bool,

    #[command(flatten)]
    key: passphrase::KeyFile,
}

/// How the key of a new slot is derived.
#[derive(Debug, Clone, clap::Args)]
pub struct Derivation {
    /// How the key is derived from the passphrase.
    #[arg(long, value_enum, value_name = "NAME")]
    pbkdf: Option<Pbkdf>,

    /// Memory of Argon2, KiB.
    #[arg(long, value_name = "KIB", default_value_t = 256 << 10)]
    pbkdf_memory: u32,

    /// Lanes of Argon2.
    #[arg(long, value_name = "NUMBER", default_value_t = 4)]
    pbkdf_parallel: u32,

    /// Passes of Argon2 (4), or iterations of PBKDF2 (1000000).
    #[arg(long, value_name = "NUMBER")]
    pbkdf_force_iterations: Option<u32>,
}

/// Names of key derivations, as cryptsetup has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Pbkdf {
    /// Argon2id, of LUKS2 alone, and its default.
    Argon2id,
    /// Argon2i, of LUKS2 alone.
    Argon2i,
    /// PBKDF2 with the header's hash, the only one of LUKS1.
    Pbkdf2,
}

impl Derivation {
    /// What is asked for, of a header of this version with this hash.
    pub fn kdf(&self, version: u16, hash: format::luks::Hash) -> Kdf {
        let default = if version == 1 { Pbkdf::Pbkdf2 } else { Pbkdf::Argon2id };
        match self.pbkdf.unwrap_or(default) {
            Pbkdf::Pbkdf2 => {
                Kdf::Pbkdf2 { hash, iterations: self.pbkdf_force_iterations.unwrap_or(1_000_000), salt: Vec::new() }
            }
            argon2 => Kdf::Argon2 {
                id: argon2 == Pbkdf::Argon2id,
                time: self.pbkdf_force_iterations.unwrap_or(4),
                memory_kib: self.pbkdf_memory,
                lanes: self.pbkdf_parallel,
                salt: Vec::new(),
            },
        }
    }
}

/// Random bytes of the kernel, for keys.
///
/// # Errors
/// What `getrandom(2)` says.
pub fn random(bytes: &mut [u8]) -> block::Result<()> {
    let mut at = 0;
    while at < bytes.len() {
        match rustix::rand::getrandom(&mut bytes[at..], rustix::rand::GetRandomFlags::empty()) {
            Ok(more) => at += more,
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(Error::io("random bytes", errno)),
        }
    }
    Ok(())
}

/// An encrypted image, opened for its header.
struct Volume {
    /// As typed, for messages.
    name: String,
    luks: spec::Luks,
    stack: Stack,
    detached: Option<FileBacking>,
    header: Header,
}

impl Volume {
    fn open(image: &OsString, write: bool) -> block::Result<Self> {
        let mut spec = Spec::parse(image)?;
        let luks = match spec.steps.pop() {
            Some(Step::Luks(luks)) => luks,
            other => {
                spec.steps.extend(other);
                spec::Luks::default()
            }
        };
        let name = spec.to_string();
        let detached = detached_header(&luks, write)?;
        let access = if write && detached.is_none() { Access::WriteIfPossible } else { Access::Read };
        let stack = Stack::open(&spec, access)?;
        let of_header: &dyn ReadAt = detached.as_ref().map_or(&stack.device, |header| header);
        let header = Header::read(of_header).context(|| name.clone())?;
        let volume = Self { name, luks, stack, detached, header };
        if write && volume.device().limits().read_only {
            return Err(Error::new(Kind::ReadOnly, format!("{}: it cannot be written", volume.name)));
        }
        for problem in &volume.header.problems {
            print::warning(&format!("{}: {problem}", volume.name));
        }
        Ok(volume)
    }

    /// What the header lies on.
    fn device(&self) -> &dyn BlockDevice {
        self.detached.as_ref().map_or(&self.stack.device, |header| header)
    }

    fn unlock(&self) -> block::Result<format::luks::Unlocked> {
        passphrase::with(&self.luks, &self.name, |typed| self.header.unlock(self.device(), typed, None, &Cost::MAX))
            .context(|| self.name.clone())
    }
}

/// Does it.
pub fn run(args: &Args) -> Result {
    match &args.action {
        Action::List(args) => list(args),
        Action::Add(args) => add(args),
        Action::Remove(args) => remove(args),
    }
}

fn list(args: &List) -> Result {
    let volume = Volume::open(&args.image, false)?;
    let rows: Vec<KeySlot> = volume.header.slots.iter().map(KeySlot::of).collect();
    if args.json {
        print::json(&rows)?;
        return Ok(Status::Done);
    }
    if rows.is_empty() {
        print::line("no key slot is in use: nothing opens this image")?;
    }
    for row in &rows {
        print::line(&format!("{}  {}", styled(Style::Bold, &format!("slot {}", row.slot)), row.cost()))?;
    }
    Ok(Status::Done)
}

fn add(args: &Add) -> Result {
    args.key.remember();
    let volume = Volume::open(&args.image, true)?;
    let unlocked = volume.unlock()?;
    let new = passphrase::new(args.new_key_file.as_deref(), &volume.name)?;
    let kdf = args.derivation.kdf(volume.header.version(), volume.header.digest.hash);
    let added = volume.header.add_key(volume.device(), &unlocked, &new, &kdf, &random);
    let (_, slot) = added.context(|| volume.name.clone())?;
    print::line(&format!("slot {slot}"))?;
    Ok(Status::Done)
}

fn remove(args: &Remove) -> Result {
    args.key.remember();
    let volume = Volume::open(&args.image, true)?;
    let header = &volume.header;
    let slot = match args.slot {
        None => volume.unlock()?.slot,
        Some(slot) if args.force => slot,
        Some(slot) if header.slots.iter().all(|known| known.number != slot) => {
            return Err(Error::new(Kind::NotFound, format!("{}: key slot {slot} is not in use", volume.name)).into());
        }
        Some(slot) => {
            let mut others = header.clone();
            others.slots.retain(|known| known.number != slot);
            if !others.slots.is_empty() {
                // That somebody will still be able to open it.
                let what = format!("{} in another slot than {slot}", volume.name);
                let unlock = |typed: &[u8]| others.unlock(volume.device(), typed, None, &Cost::MAX);
                passphrase::with(&volume.luks, &what, unlock).context(|| what.clone())?;
            }
            slot
        }
    };
    let removed = header.remove_key(volume.device(), slot, args.force, &random);
    removed.map_err(|error| match error.kind() {
        Kind::Invalid => error.context(format!("{} (to do it: --slot {slot} --force)", volume.name)),
        _ => error.context(volume.name.clone()),
    })?;
    print::line(&format!("slot {slot} removed"))?;
    Ok(Status::Done)
}
