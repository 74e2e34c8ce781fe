//! A folder of WAV files: the mix, each stream of it, and what happened, in frames of the mix.
//!
//! ```text
//! DIR/mix.wav        what the card plays
//! DIR/paplay.wav     what one stream gives to it, by the name of its application; a second one is paplay-2.wav
//! DIR/events.jsonl   {"frame":0,"seconds":0.0,"event":"started","stream":3,"application":"paplay","file":"paplay.wav"}
//! ```
//!
//! All files begin with the first frame of the mix: the sum of the streams is the mix, before volume and gain of the card.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{Happened, Heard, Options};
use crate::wav::Writer;
use crate::{Error, Result};

/// Most streams that have a file; those that come later are only in the mix.
const FILES_MAX: usize = 1000;
/// Most bytes of an application's name in the name of a file.
const NAME_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    options: Options,
    mix: Writer,
    events: File,
    streams: BTreeMap<u32, Stream>,
    names: BTreeSet<String>,
}

#[derive(Debug)]
struct Stream {
    application: String,
    file: Option<(String, Writer)>,
}

impl Folder {
    /// Makes the folder, if it is not there, and the files of the mix and of the events.
    pub fn create(path: &Path, options: &Options) -> Result<Self> {
        let failed = |what: &Path, error| Error::io(format!("creation of {}", what.display()), error);
        std::fs::create_dir_all(path).map_err(|error| failed(path, error))?;
        let mix = Writer::create(&path.join("mix.wav"), options.spec, &options.map)?;
        let events = path.join("events.jsonl");
        let events = File::create(&events).map_err(|error| failed(&events, error))?;
        let names = BTreeSet::from(["mix".to_owned()]);
        Ok(Self { path: path.to_owned(), options: options.clone(), mix, events, streams: BTreeMap::new(), names })
    }

    pub fn mix(&mut self) -> &mut Writer {
        &mut self.mix
    }

    /// Takes what happened.
    pub fn write(&mut self, happened: Vec<Happened>) -> Result<()> {
        let mut lines = String::new();
        for one in happened {
            match one {
                Happened::Played { stream, frame, samples } => self.played(stream, frame, &samples)?,
                Happened::Event { frame, event, stream, application } => {
                    if !application.is_empty() {
                        self.streams.entry(stream).or_insert_with(|| Stream { application, file: None });
                    }
                    let known = self.streams.get(&stream);
                    let mut line = serde_json::json!({
                        "frame": frame,
                        "seconds": frame.map(|frame| frame as f64 / f64::from(self.options.spec.rate)),
                        "event": event,
                        "stream": stream,
                        "application": known.map(|stream| stream.application.as_str()),
                    });
                    if let Some((file, _)) = known.and_then(|stream| stream.file.as_ref())
                        && let Some(line) = line.as_object_mut()
                    {
                        line.insert("file".to_owned(), file.as_str().into());
                    }
                    lines.push_str(&line.to_string());
                    lines.push('\n');
                    if event == "removed" {
                        self.streams.remove(&stream);
                    }
                }
            }
        }
        let failed = |error| Error::io(format!("writing of {}", self.path.join("events.jsonl").display()), error);
        self.events.write_all(lines.as_bytes()).map_err(failed)
    }

    fn played(&mut self, stream: u32, frame: u64, samples: &[f64]) -> Result<()> {
        let known = self.streams.entry(stream).or_insert_with(|| Stream { application: String::new(), file: None });
        if known.file.is_none() {
            if self.names.len() > FILES_MAX {
                return Ok(());
            }
            let name = file_name(&known.application);
            let names = &mut self.names;
            let free = std::iter::once(name.clone())
                .chain((2..).map(|number| format!("{name}-{number}")))
                .find(|name| names.insert(name.clone()));
            let name = format!("{}.wav", free.unwrap_or_default());
            let writer = Writer::create(&self.path.join(&name), self.options.spec, &self.options.map)?;
            known.file = Some((name, writer));
        }
        let Some((_, writer)) = &mut known.file else { return Ok(()) };
        let there = writer.bytes() / writer.spec().frame_bytes().max(1) as u64;
        if there < frame {
            writer.write_silence(frame - there)?;
        }
        let mut bytes = Vec::new();
        writer.spec().format.encode(samples, &mut bytes);
        writer.write(&bytes)
    }
}

/// Letters, digits, `-`, `_` and single dots of an application's name.
fn file_name(application: &str) -> String {
    let plain = |letter: char| if letter.is_alphanumeric() || matches!(letter, '-' | '_' | '.') { letter } else { '_' };
    let mut name: String = application.trim().chars().map(plain).collect();
    while name.len() > NAME_MAX {
        name.pop();
    }
    let name = name.trim_start_matches('.').to_owned();
    if name.is_empty() { "stream".to_owned() } else { name }
}

/// What the WAV file of a card is written to.
#[derive(Debug)]
pub(super) enum Output {
    File(Writer),
    Folder(Box<Folder>),
}

impl Output {
    /// A folder where there is one, or where the path ends with `/`; otherwise a file.
    pub fn create(path: &Path, options: &Options) -> Result<Self> {
        use std::os::unix::ffi::OsStrExt as _;
        if path.is_dir() || path.as_os_str().as_bytes().ends_with(b"/") {
            Ok(Self::Folder(Box::new(Folder::create(path, options)?)))
        } else {
            Ok(Self::File(Writer::create(path, options.spec, &options.map)?))
        }
    }

    pub fn is_folder(&self) -> bool {
        matches!(self, Self::Folder(_))
    }

    /// Writes what was heard, and what happened.
    pub fn write(&mut self, heard: Vec<Heard>, happened: Vec<Happened>) -> Result<()> {
        let mix = match self {
            Self::File(writer) => writer,
            Self::Folder(folder) => {
                folder.write(happened)?;
                folder.mix()
            }
        };
        for piece in heard {
            match piece {
                Heard::Samples(samples) => {
                    let mut bytes = Vec::new();
                    mix.spec().format.encode(&samples, &mut bytes);
                    mix.write(&bytes)?;
                }
                Heard::Silence(frames) => mix.write_silence(frames)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn no_name_leaves_the_folder() {
        for (application, name) in
            [("paplay", "paplay"), ("../../etc/x", "_.._etc_x"), ("", "stream"), ("..", "stream"), ("a b", "a_b")]
        {
            assert_eq!(super::file_name(application), name);
        }
        assert!(super::file_name(&"ä".repeat(100)).len() <= super::NAME_MAX);
    }
}
