//! Volumes to test with.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use backing::{FileBacking, Open};
use block::{BlockDevice, Result};
use loopbox_format::luks::{Cost, Create, Crypt, Hash, Header, Kdf};

/// The passphrase of every volume here.
pub const PASSPHRASE: &[u8] = b"correct horse battery staple";

/// What tests may spend on a key.
pub const COST: Cost = Cost { memory_kib: 65536, passes_kib: 1 << 20, iterations: 2_000_000 };

/// Quick key slots.
pub fn quick(version: u16) -> Kdf {
    match version {
        1 => Kdf::Pbkdf2 { hash: Hash::Sha256, iterations: 1000, salt: vec![] },
        _ => Kdf::Argon2 { id: true, time: 4, memory_kib: 64, lanes: 1, salt: vec![] },
    }
}

/// What [`loopbox_format::luks::create`] is asked for, with a quick key slot.
pub fn quick_create() -> Create {
    Create { kdf: quick(2), ..Create::default() }
}

/// Random enough for tests, and not the same twice.
pub fn random(bytes: &mut [u8]) -> Result<()> {
    use std::io::Read as _;
    std::fs::File::open("/dev/urandom").unwrap().read_exact(bytes).unwrap();
    Ok(())
}

/// Bytes that differ everywhere.
pub fn content(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..len.div_ceil(8)).flat_map(|_| next().to_le_bytes()).take(len).collect()
}

/// A folder with the passphrase in the file `key`.
pub struct Folder {
    pub scratch: rig::Scratch,
    pub key: PathBuf,
}

impl Folder {
    pub fn new() -> Self {
        let scratch = rig::Scratch::new("luks");
        let key = scratch.join("key");
        std::fs::write(&key, PASSPHRASE).unwrap();
        Self { scratch, key }
    }

    pub fn join(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    /// `cryptsetup` with these words; it must succeed.
    pub fn cryptsetup(&self, words: &[&str], files: &[&Path]) -> String {
        let output = self.try_cryptsetup(words, files);
        assert!(output.status.success(), "cryptsetup {words:?}: {}", rig::text(&output));
        rig::text(&output)
    }

    pub fn try_cryptsetup(&self, words: &[&str], files: &[&Path]) -> Output {
        let mut command = Command::new(rig::which("cryptsetup").unwrap());
        rig::output(command.args(["--batch-mode", "--key-file"]).arg(&self.key).args(words).args(files))
    }

    /// Whether `cryptsetup` opens a slot of a volume with a passphrase.
    pub fn opens(&self, volume: &Path, passphrase: &[u8], slot: Option<u32>) -> bool {
        let key = self.join("key-to-test");
        std::fs::write(&key, passphrase).unwrap();
        let mut command = Command::new(rig::which("cryptsetup").unwrap());
        command.args(["open", "--test-passphrase", "--key-file"]).arg(&key);
        if let Some(slot) = slot {
            command.args(["--key-slot", &slot.to_string()]);
        }
        let output = rig::output(command.arg(volume));
        assert!(matches!(output.status.code(), Some(0..=2)), "{}", rig::text(&output));
        output.status.success()
    }

    /// A volume that `cryptsetup luksFormat` made with these words and a quick key slot.
    pub fn formatted(&self, name: &str, words: &[&str]) -> PathBuf {
        let volume = self.join(name);
        std::fs::File::create(&volume).unwrap().set_len(20 << 20).unwrap();
        let quick: &[&str] = if words.contains(&"luks1") || words.contains(&"pbkdf2") {
            &["--pbkdf-force-iterations", "1000"]
        } else {
            &["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"]
        };
        self.cryptsetup(&[&["luksFormat"], words, quick].concat(), &[&volume]);
        volume
    }
}

/// A file, open for writing.
pub fn file(path: &Path) -> Arc<FileBacking> {
    Arc::new(FileBacking::open(path, Open::WRITE).unwrap())
}

/// The same, without writing.
pub fn reader(path: &Path) -> Arc<FileBacking> {
    Arc::new(FileBacking::open(path, Open::READ).unwrap())
}

/// Opens a volume with a passphrase.
pub fn open(volume: &Path, passphrase: &[u8]) -> Result<Crypt<Arc<FileBacking>>> {
    open_on(file(volume), passphrase)
}

/// That a passphrase opens a volume that may be open for writing already; if not, why.
pub fn opens(volume: &Path, passphrase: &[u8]) -> Result<()> {
    open_on(reader(volume), passphrase).map(drop)
}

fn open_on(device: Arc<FileBacking>, passphrase: &[u8]) -> Result<Crypt<Arc<FileBacking>>> {
    let header = Header::read(&device)?;
    let unlocked = header.unlock(&device, passphrase, None, &COST)?;
    Crypt::new(device, &header.segment, &unlocked.key)
}

pub fn read_all(device: &dyn BlockDevice) -> Vec<u8> {
    let mut bytes = vec![0xA5; device.size() as usize];
    device.read_at(&mut bytes, 0).unwrap();
    bytes
}
