//! Passphrases: from the terminal without an echo, from a file, from a file descriptor; never from the command line.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use block::{Error, Kind, Result, ResultExt as _};
use format::spec::{Key, Luks};
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use sys::memory::Secret;

/// The longest passphrase of a file, bytes; as for cryptsetup.
const FILE_BYTES_MAX: usize = 8 << 20;
/// The longest passphrase that is typed, bytes; as for cryptsetup.
const TYPED_BYTES_MAX: usize = 512;
/// How often it is asked for.
const TRIES: u32 = 3;

/// `--key-file`, which counts where a spec names no key.
static KEY_FILE: OnceLock<PathBuf> = OnceLock::new();

/// What every command that opens an image takes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct KeyFile {
    /// The passphrase of an encrypted image (`disk.img,luks`) is all bytes of this file (-: standard input); without
    /// it, it is asked for on the terminal.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

impl KeyFile {
    /// Remembers the file for whoever opens an image.
    pub fn remember(&self) {
        if let Some(file) = &self.key_file {
            let _ = KEY_FILE.set(file.clone());
        }
    }
}

/// Calls `unlock` with the passphrase that `luks` asks for, up to three times where a user types it.
///
/// # Errors
/// That of `unlock`, `Denied` being what makes it be asked again; [`Kind::NotFound`] where there is no terminal.
pub fn with<T>(luks: &Luks, what: &str, mut unlock: impl FnMut(&[u8]) -> Result<T>) -> Result<T> {
    let key = match (&luks.key, KEY_FILE.get()) {
        (Key::Ask, Some(file)) => Key::File(file.clone()),
        (key, _) => key.clone(),
    };
    match key {
        Key::File(file) => unlock(&of_file(&file)?),
        Key::Fd(number) => unlock(&of_fd(number)?),
        Key::Ask => {
            let mut terminal = Terminal::open()?;
            let mut tries = 1;
            loop {
                match unlock(&terminal.ask(&format!("Passphrase of {what}: "))?) {
                    Err(error) if error.kind() == Kind::Denied && tries < TRIES => {
                        terminal.say(&format!("{error}\n"))?;
                        tries += 1;
                    }
                    other => return other,
                }
            }
        }
    }
}

/// A new passphrase: of a file, or typed twice.
///
/// # Errors
/// That of the file or of the terminal; [`Kind::Invalid`] where what was typed differs, or is empty.
pub fn new(file: Option<&Path>, what: &str) -> Result<Secret> {
    if let Some(file) = file {
        return of_file(file);
    }
    let mut terminal = Terminal::open()?;
    let first = terminal.ask(&format!("New passphrase of {what}: "))?;
    if first.is_empty() {
        return Err(Error::new(Kind::Invalid, "an empty passphrase"));
    }
    if *first != *terminal.ask("The same again: ")? {
        return Err(Error::new(Kind::Invalid, "the two passphrases differ"));
    }
    Ok(first)
}

/// All bytes of a file; `-` is standard input.
pub fn of_file(path: &Path) -> Result<Secret> {
    let what = || format!("key file {}", path.display());
    if path == Path::new("-") {
        let input = std::io::stdin().as_fd().try_clone_to_owned().context(|| "standard input")?;
        return read(input, "standard input");
    }
    read(File::open(path).context(what)?.into(), &what())
}

fn of_fd(number: u16) -> Result<Secret> {
    // Opened anew where that can be done would begin at its first byte again: a copy goes on where it is.
    let what = format!("file descriptor {number}");
    let copied = sys::file::duplicate(number.into()).context(|| what.clone())?;
    read(copied, &what)
}

/// All bytes that can be read, without a copy left behind.
fn read(from: OwnedFd, what: &str) -> Result<Secret> {
    let memory = |error| Error::io("memory for a passphrase", error);
    let mut from = File::from(from);
    let mut room = Secret::new(4096).map_err(memory)?;
    let mut len = 0;
    loop {
        if len == room.len() {
            if len >= FILE_BYTES_MAX {
                return Err(Error::new(
                    Kind::Limit,
                    format!("{what}: more than {FILE_BYTES_MAX} bytes for a passphrase"),
                ));
            }
            let mut larger = Secret::new(room.len() * 4).map_err(memory)?;
            larger[..len].copy_from_slice(&room);
            room = larger;
        }
        match from.read(&mut room[len..]) {
            Ok(0) => return Secret::of(&room[..len]).map_err(memory),
            Ok(more) => len += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::io(what.to_owned(), error)),
        }
    }
}

/// The terminal of this process, which shows nothing of what is typed until it is dropped.
struct Terminal {
    file: File,
    before: Termios,
}

impl Terminal {
    fn open() -> Result<Self> {
        let file = File::options().read(true).write(true).open("/dev/tty");
        let file = file.map_err(|error| {
            let context =
                "no terminal to ask for the passphrase: say --key-file FILE, or key-file= or key-fd= behind luks";
            Error::io(context, error)
        })?;
        let failed = |errno| Error::io("the terminal", errno);
        let before = tcgetattr(&file).map_err(failed)?;
        let mut quiet = before.clone();
        // Letter by letter, Ctrl-C too, so that the terminal is put back into order whatever is typed.
        quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ICANON | LocalModes::ISIG);
        quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
        quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
        tcsetattr(&file, OptionalActions::Flush, &quiet).map_err(failed)?;
        Ok(Self { file, before })
    }

    fn say(&mut self, text: &str) -> Result<()> {
        self.file.write_all(text.as_bytes()).context(|| "the terminal")
    }

    fn ask(&mut self, question: &str) -> Result<Secret> {
        const INTERRUPT: u8 = 3;
        const END: u8 = 4;
        const ERASE_LINE: u8 = 21;
        let memory = |error| Error::io("memory for a passphrase", error);
        self.say(question)?;
        let mut typed = Secret::new(TYPED_BYTES_MAX).map_err(memory)?;
        let mut len = 0;
        let mut letter = Secret::new(1).map_err(memory)?;
        let answer = loop {
            match self.file.read(&mut letter) {
                Ok(0) => break Err(Error::new(Kind::Disconnected, "the terminal")),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => break Err(Error::io("the terminal", error)),
                Ok(_) => {}
            }
            match letter[0] {
                b'\n' | b'\r' | END => break Ok(len),
                INTERRUPT => break Err(Error::new(Kind::Interrupted, "no passphrase was given")),
                ERASE_LINE => len = 0,
                8 | 127 => {
                    // A letter may be several bytes of UTF-8.
                    while len > 0 {
                        len -= 1;
                        if typed[len] & 0xc0 != 0x80 {
                            break;
                        }
                    }
                }
                byte if len < TYPED_BYTES_MAX => {
                    typed[len] = byte;
                    len += 1;
                }
                _ => break Err(Error::new(Kind::Limit, format!("a passphrase of more than {TYPED_BYTES_MAX} bytes"))),
            }
        };
        self.say("\n")?;
        Secret::of(&typed[..answer?]).map_err(memory)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.file, OptionalActions::Flush, &self.before);
    }
}
