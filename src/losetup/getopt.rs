//! Words of a command line as `getopt_long(3)` of the GNU C library takes them apart.
//!
//! - options and other words may be mixed, unless `POSIXLY_CORRECT` is set; `--` ends the options
//! - `-abc`, `-oARG`, `-o ARG`; `--name ARG`, `--name=ARG`; an argument that may be left out needs the `=`
//! - a long name may be cut, as long as it means one option
//!
//! The messages are those that scripts may have seen from the library.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

/// Whether an option takes an argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// None.
    Nothing,
    /// One.
    Argument,
    /// One after `=`, or none.
    Optional,
}

/// A long option.
#[derive(Debug, Clone, Copy)]
pub struct Long<T> {
    /// Without the dashes.
    pub name: &'static str,
    /// Whether it takes an argument.
    pub takes: Takes,
    /// What it is.
    pub option: T,
    /// Whether the name may be cut.
    pub may_be_cut: bool,
}

/// A short option.
#[derive(Debug, Clone, Copy)]
pub struct Short<T> {
    /// After the dash.
    pub letter: u8,
    /// Whether it takes an argument.
    pub takes: bool,
    /// What it is.
    pub option: T,
}

/// The words, of which one option after the other is taken.
#[derive(Debug)]
pub struct Words<'a, T> {
    long: &'a [Long<T>],
    short: &'a [Short<T>],
    words: std::vec::IntoIter<OsString>,
    /// What is left of `-abc`.
    cluster: std::vec::IntoIter<u8>,
    /// Words that are no options.
    operands: Vec<OsString>,
    permute: bool,
}

impl<'a, T: Copy + PartialEq> Words<'a, T> {
    /// Of these words, the name of the program not among them.
    pub fn new(long: &'a [Long<T>], short: &'a [Short<T>], words: Vec<OsString>) -> Self {
        let permute = std::env::var_os("POSIXLY_CORRECT").is_none();
        let cluster = Vec::new().into_iter();
        Self { long, short, words: words.into_iter(), cluster, operands: Vec::new(), permute }
    }

    /// The next option and its argument; `None` after the last.
    ///
    /// # Errors
    /// The message, without the name of the program.
    pub fn next_option(&mut self) -> Result<Option<(T, Option<OsString>)>, Vec<u8>> {
        loop {
            if let Some(letter) = self.cluster.next() {
                return self.short_option(letter).map(Some);
            }
            let Some(word) = self.words.next() else { return Ok(None) };
            match word.as_bytes() {
                b"--" => {
                    self.operands.extend(self.words.by_ref());
                    return Ok(None);
                }
                [b'-', b'-', name @ ..] => return self.long_option(name).map(Some),
                [b'-', letters @ ..] if !letters.is_empty() => self.cluster = Vec::from(letters).into_iter(),
                _ if self.permute => self.operands.push(word),
                _ => {
                    self.operands.push(word);
                    self.operands.extend(self.words.by_ref());
                    return Ok(None);
                }
            }
        }
    }

    /// The words that are no options.
    pub fn operands(self) -> Vec<OsString> {
        self.operands
    }

    fn short_option(&mut self, letter: u8) -> Result<(T, Option<OsString>), Vec<u8>> {
        let Some(short) = self.short.iter().find(|short| short.letter == letter) else {
            return Err([b"invalid option -- '", &[letter][..], b"'"].concat());
        };
        if !short.takes {
            return Ok((short.option, None));
        }
        let rest: Vec<u8> = self.cluster.by_ref().collect();
        let argument = if rest.is_empty() { self.words.next() } else { Some(OsString::from_vec(rest)) };
        match argument {
            Some(argument) => Ok((short.option, Some(argument))),
            None => Err([b"option requires an argument -- '", &[letter][..], b"'"].concat()),
        }
    }

    fn long_option(&mut self, text: &[u8]) -> Result<(T, Option<OsString>), Vec<u8>> {
        let (name, value) = match text.iter().position(|byte| *byte == b'=') {
            Some(at) => (&text[..at], Some(OsStr::from_bytes(&text[at + 1..]).to_owned())),
            None => (text, None),
        };
        let exact = self.long.iter().find(|long| long.name.as_bytes() == name);
        let begins = |long: &&Long<T>| long.may_be_cut && long.name.as_bytes().starts_with(name);
        let meant: Vec<&Long<T>> = self.long.iter().filter(begins).collect();
        let long = match (exact, meant.as_slice()) {
            (Some(long), _) => long,
            (None, []) => return Err([b"unrecognized option '--", text, b"'"].concat()),
            (None, [first, rest @ ..]) => {
                if rest.iter().any(|long| long.option != first.option || long.takes != first.takes) {
                    let mut message = [b"option '--", text, b"' is ambiguous; possibilities:"].concat();
                    for long in &meant {
                        message.extend_from_slice(format!(" '--{}'", long.name).as_bytes());
                    }
                    return Err(message);
                }
                first
            }
        };
        match (long.takes, value) {
            (Takes::Nothing, Some(_)) => {
                Err(format!("option '--{}' doesn't allow an argument", long.name).into_bytes())
            }
            (Takes::Argument, None) => match self.words.next() {
                Some(argument) => Ok((long.option, Some(argument))),
                None => Err(format!("option '--{}' requires an argument", long.name).into_bytes()),
            },
            (_, value) => Ok((long.option, value)),
        }
    }
}
