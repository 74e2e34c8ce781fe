//! The words that name an image: `PATH[,OPTION[=VALUE]]…`, and `IMAGE:PATH` for a file inside of one.
//!
//! ```text
//! disk.img                                  the file as it is
//! disk.img,partition=2,ro                   its second partition, read only
//! disk.img,partition=LABEL=root             the partition whose file system has that label
//! odd\,name.img,offset=1MiB,sizelimit=4K    4 KiB from 1 MiB on of the file "odd,name.img"
//! disk.img,ro:/etc/fstab                    a file inside (only where a command says IMAGE:PATH)
//! ```
//!
//! **Order typed is order stacked**: each option wraps what stands to its left, so `offset=1M,partition=1` looks for the
//! partition table at 1 MiB, and `sizelimit=1M,offset=4K` leaves 1 MiB less 4 KiB.
//!
//! **Escapes**: a backslash before a comma, a colon or a backslash takes it as it is; before anything else the
//! backslash is itself. Everything else is taken byte for byte, whether or not it is UTF-8. In a plain spec a colon needs
//! no backslash. What stands after the colon of `IMAGE:PATH` has no escapes at all.
//!
//! Nothing here touches a file: see [`split_path`] for the one question that it asks its caller.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use block::{Error, Kind, Result};

pub use crate::probe::Format;

mod size;
mod wrong;

pub use size::size_bytes;
pub use wrong::Wrong;

/// The most options of one spec.
pub const STEPS_MAX: usize = 64;

/// An image as it was named: where it is, and what is stacked on it, bottom first.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Spec {
    /// The file.
    pub path: PathBuf,
    /// What is stacked on it, in the order typed.
    pub steps: Vec<Step>,
}

/// One option.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// `ro`: no writes from here up.
    ReadOnly,
    /// `rw`: writes wanted; opening fails where they are not possible.
    ReadWrite,
    /// `partition=`: one partition of the table that is there.
    Partition(Selector),
    /// `offset=`: from this byte on.
    Offset(u64),
    /// `sizelimit=`: at most this many bytes; 0 is no limit, as for losetup.
    SizeLimit(u64),
    /// `overlay` and `overlay=FILE`: writes go to that file, or to memory and are dropped.
    Overlay(Option<PathBuf>),
    /// `format=`: what it is taken for, rather than what its first bytes say.
    Format(Format),
    /// `backing` and `backing=FILE`: what the image names itself may be opened, or is this file.
    Backing(Option<PathBuf>),
    /// `snapshot=`: the disk as it was when that snapshot was taken.
    Snapshot(String),
    /// `direct`: past the page cache.
    Direct,
    /// `block=`: logical block in bytes, 512 or 4096.
    Block(u32),
    /// `luks`, with `key-file=`, `key-fd=` and `header=` behind it: the plain bytes of an encrypted volume.
    Luks(Luks),
}

/// How an encrypted volume is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Luks {
    /// Where the passphrase comes from.
    pub key: Key,
    /// The file that holds the header, where it is not at the beginning of the volume.
    pub header: Option<PathBuf>,
}

/// Where a passphrase comes from.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Key {
    /// The user is asked.
    #[default]
    Ask,
    /// All bytes of a file; `-` is standard input.
    File(PathBuf),
    /// All bytes of an open file descriptor.
    Fd(u16),
}

/// How a partition is named.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Selector {
    /// By its number, as the kernel counts: from 1, logical partitions from 5.
    Number(u32),
    /// By the label of its file system.
    Label(OsString),
    /// By the UUID of its file system.
    Uuid(String),
    /// By the name that the partition table gives it.
    PartLabel(OsString),
    /// By the UUID that the partition table gives it.
    PartUuid(String),
}

/// A word that the grammar knows. The table [`WORDS`] is the only place where a new one is added.
#[derive(Debug, Clone, Copy)]
pub struct Word {
    /// As typed, before the `=`.
    pub name: &'static str,
    /// What may follow the `=`, for messages and the manual; empty where nothing may.
    pub value: &'static str,
    /// One line for the manual.
    pub about: &'static str,
    step: fn(&'static Word, Option<&[u8]>) -> std::result::Result<Step, Wrong>,
}

/// All options.
pub const WORDS: &[Word] = &[
    Word { name: "ro", value: "", about: "no writes", step: |word, value| word.flag(value, Step::ReadOnly) },
    Word {
        name: "rw",
        value: "",
        about: "writes wanted: fail where they are not possible",
        step: |word, value| word.flag(value, Step::ReadWrite),
    },
    Word {
        name: "partition",
        value: "N, LABEL=…, UUID=…, PARTLABEL=… or PARTUUID=…",
        about: "one partition of the table that is there",
        step: |word, value| word.selector(value).map(Step::Partition),
    },
    Word {
        name: "offset",
        value: "bytes, or a number with K, M, G, T (1024) or KB, MB, GB, TB (1000)",
        about: "from this byte on",
        step: |word, value| word.size(value).map(Step::Offset),
    },
    Word {
        name: "sizelimit",
        value: "bytes, or a number with K, M, G, T (1024) or KB, MB, GB, TB (1000)",
        about: "at most this many bytes",
        step: |word, value| word.size(value).map(Step::SizeLimit),
    },
    Word {
        name: "overlay",
        value: "a file, or nothing for memory",
        about: "writes go there, the image stays as it is",
        step: |word, value| match value {
            None => Ok(Step::Overlay(None)),
            Some([]) => Err(word.missing()),
            Some(file) => Ok(Step::Overlay(Some(PathBuf::from(unescape(file))))),
        },
    },
    Word {
        name: "format",
        value: "raw, qcow2, vhd, vhdx, vmdk, vdi, parallels, gzip, xz or zstd",
        about: "what the image is taken for, whatever its first bytes say",
        step: |word, value| {
            let value = word.value_of(value)?;
            let format = std::str::from_utf8(value).ok().and_then(crate::image::format_of);
            format.map(Step::Format).ok_or_else(|| word.bad(value))
        },
    },
    Word {
        name: "backing",
        value: "a file, or nothing for those that the image names",
        about: "files that the image names itself may be opened; or this one in place of the first",
        step: |word, value| match value {
            None => Ok(Step::Backing(None)),
            Some([]) => Err(word.missing()),
            Some(file) => Ok(Step::Backing(Some(PathBuf::from(unescape(file))))),
        },
    },
    Word {
        name: "snapshot",
        value: "a name or a number",
        about: "the disk as it was when that internal snapshot was taken",
        step: |word, value| {
            let value = word.value_of(value)?;
            unescape(value).into_string().map(Step::Snapshot).map_err(|_| word.bad(value))
        },
    },
    Word {
        name: "direct",
        value: "",
        about: "past the page cache (O_DIRECT)",
        step: |word, value| word.flag(value, Step::Direct),
    },
    Word {
        name: "block",
        value: "512 or 4096",
        about: "logical block in bytes",
        step: |word, value| match word.value_of(value)? {
            b"512" => Ok(Step::Block(512)),
            b"4096" => Ok(Step::Block(4096)),
            other => Err(word.bad(other)),
        },
    },
    Word {
        name: "luks",
        value: "",
        about: "the plain bytes of an encrypted volume (LUKS1 or LUKS2); the passphrase is asked for",
        step: |word, value| word.flag(value, Step::Luks(Luks::default())),
    },
    Word {
        name: "key-file",
        value: "a file, or - for standard input",
        about: "after luks: the passphrase is all bytes of this file",
        step: |word, value| {
            let key = Key::File(PathBuf::from(unescape(word.value_of(value)?)));
            Ok(Step::Luks(Luks { key, header: None }))
        },
    },
    Word {
        name: "key-fd",
        value: "the number of an open file descriptor",
        about: "after luks: the passphrase is all bytes that can be read there",
        step: |word, value| {
            let value = word.value_of(value)?;
            let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            let key = Key::Fd(number.ok_or_else(|| word.bad(value))?);
            Ok(Step::Luks(Luks { key, header: None }))
        },
    },
    Word {
        name: "header",
        value: "a file",
        about: "after luks: the file that holds the header, apart from the data",
        step: |word, value| {
            let header = Some(PathBuf::from(unescape(word.value_of(value)?)));
            Ok(Step::Luks(Luks { key: Key::Ask, header }))
        },
    },
];

/// The words that say more of the `luks` before them.
const OF_LUKS: &[&str] = &["key-file", "key-fd", "header"];

/// Takes what a word of [`OF_LUKS`] says into the step before it.
fn say_more(steps: &mut [Step], word: &'static str, step: Step) -> std::result::Result<(), Wrong> {
    let (Some(Step::Luks(luks)), Step::Luks(more)) = (steps.last_mut(), step) else {
        return Err(Wrong::NotBehind { word, before: "luks" });
    };
    match more {
        Luks { header: Some(_), .. } if luks.header.is_some() => Err(Wrong::Contradiction("header", "header")),
        Luks { header: Some(header), .. } => {
            luks.header = Some(header);
            Ok(())
        }
        Luks { .. } if luks.key != Key::Ask => Err(Wrong::Contradiction("key-file", "key-fd")),
        Luks { key, .. } => {
            luks.key = key;
            Ok(())
        }
    }
}

impl Word {
    fn missing(&'static self) -> Wrong {
        Wrong::MissingValue { word: self.name, possible: self.value }
    }

    fn bad(&'static self, value: &[u8]) -> Wrong {
        Wrong::BadValue { word: self.name, value: wrong::show(value), possible: self.value }
    }

    fn flag(&'static self, value: Option<&[u8]>, step: Step) -> std::result::Result<Step, Wrong> {
        match value {
            None => Ok(step),
            Some(value) => Err(Wrong::UnwantedValue { word: self.name, value: wrong::show(value) }),
        }
    }

    fn value_of<'a>(&'static self, value: Option<&'a [u8]>) -> std::result::Result<&'a [u8], Wrong> {
        value.filter(|value| !value.is_empty()).ok_or_else(|| self.missing())
    }

    fn size(&'static self, value: Option<&[u8]>) -> std::result::Result<u64, Wrong> {
        let value = self.value_of(value)?;
        std::str::from_utf8(value).ok().and_then(size_bytes).ok_or_else(|| self.bad(value))
    }

    fn selector(&'static self, value: Option<&[u8]>) -> std::result::Result<Selector, Wrong> {
        let value = self.value_of(value)?;
        let bad = || self.bad(value);
        let Some(equals) = value.iter().position(|byte| *byte == b'=') else {
            let number = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok());
            return number.filter(|number| *number > 0).map(Selector::Number).ok_or_else(bad);
        };
        let (tag, rest) = value.split_at_checked(equals).ok_or_else(bad)?;
        let name = unescape(rest.get(1..).filter(|name| !name.is_empty()).ok_or_else(bad)?);
        let text = |name: OsString| name.into_string().map_err(|_| bad());
        match tag.to_ascii_uppercase().as_slice() {
            b"LABEL" => Ok(Selector::Label(name)),
            b"UUID" => text(name).map(Selector::Uuid),
            b"PARTLABEL" => Ok(Selector::PartLabel(name)),
            b"PARTUUID" => text(name).map(Selector::PartUuid),
            _ => Err(bad()),
        }
    }
}

impl Spec {
    /// A file with nothing stacked on it, whatever bytes its name holds.
    pub fn of_path(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into(), steps: Vec::new() }
    }

    /// Reads `PATH[,OPTION[=VALUE]]…`.
    ///
    /// # Errors
    /// [`Kind::Invalid`] with a [`Wrong`] as its source, which names the word and what would be possible.
    pub fn parse(text: impl AsRef<OsStr>) -> Result<Self> {
        let text = text.as_ref();
        Self::read(text.as_bytes())
            .map_err(|wrong| Error::new(Kind::Invalid, format!("image {}", text.display())).with_source(wrong))
    }

    fn read(text: &[u8]) -> std::result::Result<Self, Wrong> {
        let mut words = split(text, b',');
        let path = words.next().filter(|path| !path.is_empty()).ok_or(Wrong::NoPath)?;
        if path.contains(&0) {
            return Err(Wrong::NulInPath);
        }
        let mut steps = Vec::new();
        for word in words {
            if steps.len() >= STEPS_MAX {
                return Err(Wrong::TooMany);
            }
            let (name, value) =
                match word.iter().position(|byte| *byte == b'=').and_then(|at| word.split_at_checked(at)) {
                    Some((name, rest)) => (name, rest.get(1..)),
                    None => (word, None),
                };
            let known = WORDS.iter().find(|known| known.name.as_bytes() == name);
            let known = known.ok_or_else(|| Wrong::unknown(name))?;
            let step = (known.step)(known, value)?;
            if OF_LUKS.contains(&known.name) {
                say_more(&mut steps, known.name, step)?;
            } else {
                steps.push(step);
            }
        }
        if steps.contains(&Step::ReadOnly) && steps.contains(&Step::ReadWrite) {
            return Err(Wrong::Contradiction("ro", "rw"));
        }
        Ok(Self { path: PathBuf::from(unescape(path)), steps })
    }

    /// The spec as it may be typed: [`Spec::parse`] of it gives the same again.
    pub fn to_os_string(&self) -> OsString {
        let mut text = escape(self.path.as_os_str());
        for step in &self.steps {
            text.push(b',');
            step.write(&mut text);
        }
        OsString::from_vec(text)
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_os_string().display().fmt(f)
    }
}

impl Step {
    fn write(&self, text: &mut Vec<u8>) {
        if let Self::Luks(luks) = self {
            return luks.write(text);
        }
        let (word, value): (&str, Vec<u8>) = match self {
            Self::ReadOnly => ("ro", vec![]),
            Self::Luks(_) => ("luks", vec![]),
            Self::ReadWrite => ("rw", vec![]),
            Self::Direct => ("direct", vec![]),
            Self::Overlay(None) => ("overlay", vec![]),
            Self::Overlay(Some(file)) => ("overlay=", escape(file.as_os_str())),
            Self::Offset(bytes) => ("offset=", bytes.to_string().into_bytes()),
            Self::SizeLimit(bytes) => ("sizelimit=", bytes.to_string().into_bytes()),
            Self::Block(bytes) => ("block=", bytes.to_string().into_bytes()),
            Self::Format(format) => ("format=", format.name().into()),
            Self::Backing(None) => ("backing", vec![]),
            Self::Backing(Some(file)) => ("backing=", escape(file.as_os_str())),
            Self::Snapshot(name) => ("snapshot=", escape(OsStr::new(name))),
            Self::Partition(Selector::Number(number)) => ("partition=", number.to_string().into_bytes()),
            Self::Partition(Selector::Label(name)) => ("partition=LABEL=", escape(name)),
            Self::Partition(Selector::Uuid(uuid)) => ("partition=UUID=", escape(OsStr::new(uuid))),
            Self::Partition(Selector::PartLabel(name)) => ("partition=PARTLABEL=", escape(name)),
            Self::Partition(Selector::PartUuid(uuid)) => ("partition=PARTUUID=", escape(OsStr::new(uuid))),
        };
        text.extend_from_slice(word.as_bytes());
        text.extend_from_slice(&value);
    }
}

impl Luks {
    fn write(&self, text: &mut Vec<u8>) {
        text.extend_from_slice(b"luks");
        match &self.key {
            Key::Ask => {}
            Key::File(file) => {
                text.extend_from_slice(b",key-file=");
                text.extend(escape(file.as_os_str()));
            }
            Key::Fd(number) => text.extend_from_slice(format!(",key-fd={number}").as_bytes()),
        }
        if let Some(header) = &self.header {
            text.extend_from_slice(b",header=");
            text.extend(escape(header.as_os_str()));
        }
    }
}

/// Splits `IMAGE[,OPTION…][:PATH]` into the text of a spec and the path inside the image, if a colon stands there.
///
/// Every colon without a backslash may be the one. The one is taken that leaves the longest file name for which
/// `exists` says yes, so that `a:b.img:/etc` works when there is a file `a:b.img`; when there is none of them, the first
/// colon. Of the colons after an option the first is taken: one inside an option's value needs a backslash.
///
/// The path is as typed (no escapes), may be empty, and may hold commas and more colons.
pub fn split_path(text: &OsStr, mut exists: impl FnMut(&Path) -> bool) -> (&OsStr, Option<&OsStr>) {
    let bytes = text.as_bytes();
    let file_end_max = split(bytes, b',').next().map_or(0, <[u8]>::len);
    let mut ends: Vec<usize> = unescaped(bytes, b':').take(COLONS_MAX).collect();
    // Of the colons in the options only the first counts, and it stands for the whole of the name before them.
    if let Some(first_in_options) = ends.iter().position(|end| *end >= file_end_max) {
        ends.truncate(first_in_options.saturating_add(1));
    } else if file_end_max == bytes.len() || !ends.is_empty() {
        ends.push(bytes.len());
    }
    let file = |end: usize| bytes.get(..end.min(file_end_max)).map(unescape).unwrap_or_default();
    let chosen = ends.iter().rev().find(|end| exists(Path::new(&file(**end)))).or(ends.first());
    match chosen.and_then(|end| bytes.split_at_checked(*end)) {
        Some((image, rest)) => (OsStr::from_bytes(image), rest.get(1..).map(OsStr::from_bytes)),
        None => (text, None),
    }
}

/// The words of options as they are typed behind a spec, or behind `-o`: what stands between commas without a backslash.
pub fn words(text: &OsStr) -> impl Iterator<Item = &OsStr> {
    split(text.as_bytes(), b',').map(OsStr::from_bytes)
}

/// For fuzzing: reads `data` in both ways; what is a spec must print as one that reads the same.
///
/// # Panics
/// Where it does not: that is a defect of this module.
pub fn fuzz(data: &[u8]) {
    let text = OsStr::from_bytes(data);
    if let Ok(spec) = Spec::parse(text) {
        let printed = spec.to_os_string();
        assert_eq!(Spec::parse(&printed).ok(), Some(spec), "{printed:?}");
    }
    let (image, path) = split_path(text, |path| path.as_os_str().len().is_multiple_of(3));
    let path_bytes = path.map_or(0, |path| path.len().saturating_add(1));
    assert_eq!(image.len().saturating_add(path_bytes), data.len());
}

/// The most colons of one word that [`split_path`] looks at.
const COLONS_MAX: usize = 64;

/// Where `wanted` stands without a backslash before it.
fn unescaped(text: &[u8], wanted: u8) -> impl Iterator<Item = usize> + '_ {
    let mut after_backslash = false;
    text.iter().enumerate().filter_map(move |(at, byte)| {
        let plain = !std::mem::take(&mut after_backslash);
        after_backslash = plain && *byte == b'\\';
        (plain && *byte == wanted).then_some(at)
    })
}

/// The pieces between separators without a backslash, escapes left in place.
fn split(text: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut start = 0_usize;
    unescaped(text, separator).chain([text.len()]).filter_map(move |end| {
        let piece = text.get(start..end);
        start = end.saturating_add(1);
        piece
    })
}

/// What an escaped text stands for.
fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let special = (byte == b'\\').then(|| bytes.next_if(|next| matches!(next, b',' | b':' | b'\\'))).flatten();
        plain.push(special.unwrap_or(byte));
    }
    OsString::from_vec(plain)
}

/// The text that stands for these bytes.
fn escape(plain: &OsStr) -> Vec<u8> {
    let mut text = Vec::with_capacity(plain.len());
    for byte in plain.as_bytes() {
        if matches!(byte, b',' | b':' | b'\\') {
            text.push(b'\\');
        }
        text.push(*byte);
    }
    text
}

#[cfg(test)]
mod tests;
