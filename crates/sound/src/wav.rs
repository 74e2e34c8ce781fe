//! WAV, and RF64 past 4 GiB: a writer whose file is right at any moment, and a reader.
//!
//! ```text
//!  0  "RIFF" size "WAVE"           "RF64" 0xffffffff when the size does not fit
//! 12  "JUNK" 28  room              "ds64" then: 64-bit sizes of the file and of the data, and frames
//! 48  "fmt " 40  WAVE_FORMAT_EXTENSIBLE
//! 96  "data" size
//! 104 samples
//! ```
//!
//! The samples are written first, then the header that counts them: whoever kills the writer leaves a file whose header
//! is right, and at most one block that it does not count. Specifications: Microsoft's RIFF (1991) and mmreg.h; EBU Tech
//! 3306 (RF64).

use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::pcm::{Format, Map, Position, Spec};
use crate::{Error, Kind, Result};

/// Bytes before the first sample.
const HEADER_BYTES: u64 = 104;
/// Most bytes of chunks that a reader skips before the data.
const CHUNKS_MAX: usize = 1024;

/// Bits of a channel mask, by PulseAudio's positions.
const MASK: &[(u8, u32)] = &[
    (1, 1),
    (2, 2),
    (3, 4),
    (7, 8),
    (5, 0x10),
    (6, 0x20),
    (8, 0x40),
    (9, 0x80),
    (4, 0x100),
    (10, 0x200),
    (11, 0x400),
    (44, 0x800),
    (45, 0x1000),
    (47, 0x2000),
    (46, 0x4000),
    (48, 0x8000),
    (50, 0x1_0000),
    (49, 0x2_0000),
    (0, 4),
];

/// A WAV file that is being written.
#[derive(Debug)]
pub struct Writer {
    file: File,
    path: PathBuf,
    spec: Spec,
    map: Map,
    data: u64,
}

impl Writer {
    /// A new file, in the place of one that was there. WAV holds u8, A-law, µ-law, and little-endian s16, s24, s32, f32.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] for another format; what the system says.
    pub fn create(path: &Path, spec: Spec, map: &[Position]) -> Result<Self> {
        if !matches!(
            spec.format,
            Format::U8 | Format::Alaw | Format::Ulaw | Format::S16le | Format::S24le | Format::S32le | Format::F32le
        ) {
            return Err(Error::new(Kind::Unsupported, format!("a WAV file of {}", spec.format)));
        }
        let file = File::create(path).map_err(|error| Error::io(format!("creation of {}", path.display()), error))?;
        let writer = Self { file, path: path.to_owned(), spec, map: map.to_vec(), data: 0 };
        writer.write_header()?;
        Ok(writer)
    }

    /// The format that [`Writer::write`] takes.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Appends bytes of whole frames.
    ///
    /// # Errors
    /// What the system says; the file then ends where the last write that was done ended.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.put(bytes, HEADER_BYTES + self.data)?;
        self.data += bytes.len() as u64;
        self.write_header()
    }

    /// Appends silence; where silence is zero it is a hole of the file.
    ///
    /// # Errors
    /// What the system says.
    pub fn write_silence(&mut self, frames: u64) -> Result<()> {
        let bytes = frames.saturating_mul(self.spec.frame_bytes() as u64);
        if self.spec.format.silence() == 0 {
            let end = HEADER_BYTES.saturating_add(self.data).saturating_add(bytes);
            self.file.set_len(end).map_err(|error| self.failed(error))?;
            self.data += bytes;
            return self.write_header();
        }
        let block = vec![self.spec.format.silence(); 65_536 / self.spec.frame_bytes().max(1) * self.spec.frame_bytes()];
        let mut left = bytes;
        while left > 0 {
            let part = block.get(..usize::try_from(left).unwrap_or(usize::MAX).min(block.len())).unwrap_or(&block);
            self.write(part)?;
            left -= part.len() as u64;
        }
        Ok(())
    }

    /// Bytes of samples so far.
    pub fn bytes(&self) -> u64 {
        self.data
    }

    fn put(&self, bytes: &[u8], at: u64) -> Result<()> {
        self.file.write_all_at(bytes, at).map_err(|error| self.failed(error))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io(format!("writing of {}", self.path.display()), error)
    }

    fn write_header(&self) -> Result<()> {
        // The size of a chunk is even; players do not need the byte that would fill it up.
        self.put(&header(&self.spec, &self.map, self.data), 0)
    }
}

/// The first 104 bytes of a file with `data` bytes of samples.
fn header(spec: &Spec, map: &[Position], data: u64) -> Vec<u8> {
    let riff = data.saturating_add(HEADER_BYTES - 8);
    let small = u32::try_from(riff).ok();
    let frame = spec.frame_bytes() as u32;
    let mut header = Vec::with_capacity(HEADER_BYTES as usize);
    header.extend(if small.is_some() { b"RIFF" } else { b"RF64" });
    header.extend(small.unwrap_or(u32::MAX).to_le_bytes());
    header.extend(b"WAVE");
    header.extend(if small.is_some() { b"JUNK" } else { b"ds64" });
    header.extend(28u32.to_le_bytes());
    for size in [riff, data, data / u64::from(frame.max(1))] {
        header.extend(if small.is_some() { 0 } else { size }.to_le_bytes());
    }
    header.extend(0u32.to_le_bytes());
    let bits = spec.format.bytes() as u16 * 8;
    let tag: u16 = match spec.format {
        Format::F32le => 3,
        Format::Alaw => 6,
        Format::Ulaw => 7,
        _ => 1,
    };
    let mask =
        map.iter().map(|position| MASK.iter().find(|(number, _)| *number == position.0).map_or(0, |(_, bit)| *bit));
    header.extend(b"fmt ");
    header.extend(40u32.to_le_bytes());
    header.extend(0xfffeu16.to_le_bytes());
    header.extend(u16::from(spec.channels).to_le_bytes());
    header.extend(spec.rate.to_le_bytes());
    header.extend(spec.rate.saturating_mul(frame).to_le_bytes());
    header.extend((frame as u16).to_le_bytes());
    header.extend(bits.to_le_bytes());
    header.extend(22u16.to_le_bytes());
    header.extend(bits.to_le_bytes());
    header.extend(mask.fold(0, |all, bit| all | bit).to_le_bytes());
    header.extend(tag.to_le_bytes());
    header.extend([0, 0, 0, 0, 0x10, 0, 0x80, 0, 0, 0xaa, 0, 0x38, 0x9b, 0x71]);
    header.extend(b"data");
    header.extend(small.map_or(u32::MAX, |_| data as u32).to_le_bytes());
    header
}

/// A WAV or RF64 file that is read.
#[derive(Debug)]
pub struct Reader {
    file: File,
    spec: Spec,
    at: u64,
    end: u64,
}

impl Reader {
    /// Opens a file and reads its header. A size of data that the file does not have is cut.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for what is no WAV file, [`Kind::Unsupported`] for a format that is not PCM.
    pub fn open(path: &Path) -> Result<Self> {
        let name = path.display();
        let file = File::open(path).map_err(|error| Error::io(format!("opening of {name}"), error))?;
        let size = file.metadata().map_err(|error| Error::io(format!("size of {name}"), error))?.len();
        let corrupt = |what: &str| Error::new(Kind::Corrupt, format!("{name}: {what}"));
        let mut bytes = [0; 12];
        (&file).read_exact(&mut bytes).map_err(|_| corrupt("no WAV file: shorter than its header"))?;
        if !matches!(bytes.get(..4), Some(b"RIFF" | b"RF64")) || bytes.get(8..) != Some(b"WAVE") {
            return Err(corrupt("no WAV file"));
        }
        let (mut at, mut spec, mut large) = (12u64, None, None);
        for _ in 0..CHUNKS_MAX {
            let mut head = [0; 8];
            file.read_exact_at(&mut head, at).map_err(|_| corrupt("no data chunk"))?;
            let [a, b, c, d, s @ ..] = head;
            let length = u64::from(u32::from_le_bytes(s));
            at += 8;
            match &[a, b, c, d] {
                b"data" => {
                    let spec = spec.ok_or_else(|| corrupt("samples before their format"))?;
                    let length = large.filter(|_| length == u64::from(u32::MAX)).unwrap_or(length);
                    let length = length.min(size.saturating_sub(at));
                    return Ok(Self { file, spec, at, end: at + length });
                }
                b"ds64" => {
                    let mut sizes = [0; 16];
                    file.read_exact_at(&mut sizes, at).map_err(|_| corrupt("a short ds64 chunk"))?;
                    large = sizes.as_chunks::<8>().0.get(1).map(|size| u64::from_le_bytes(*size));
                }
                b"fmt " => {
                    let mut format = [0; 40];
                    let wanted = length.clamp(16, 40) as usize;
                    let part = format.get_mut(..wanted).unwrap_or_default();
                    file.read_exact_at(part, at).map_err(|_| corrupt("a short format chunk"))?;
                    spec = Some(
                        read_format(&format, wanted)
                            .map_err(|what| Error::new(Kind::Unsupported, format!("{name}: {what}")))?,
                    );
                }
                _ => {}
            }
            at = at.saturating_add(length).saturating_add(length & 1);
        }
        Err(corrupt("more than 1024 chunks"))
    }

    /// Format, channels and rate.
    pub fn spec(&self) -> Spec {
        self.spec
    }

    /// Frames that are left.
    pub fn frames(&self) -> u64 {
        self.end.saturating_sub(self.at) / self.spec.frame_bytes().max(1) as u64
    }

    /// Appends at most `frames` frames and returns how many; 0 at the end.
    ///
    /// # Errors
    /// What the system says.
    pub fn read(&mut self, frames: usize, samples: &mut Vec<f64>) -> Result<usize> {
        let frames = (frames as u64).min(self.frames());
        let bytes = usize::try_from(frames).unwrap_or(usize::MAX).saturating_mul(self.spec.frame_bytes());
        let mut block = vec![0; bytes];
        self.file.read_exact_at(&mut block, self.at).map_err(|error| Error::io("reading of a WAV file", error))?;
        self.at += bytes as u64;
        self.spec.format.decode(&block, samples);
        Ok(frames as usize)
    }
}

fn read_format(format: &[u8; 40], length: usize) -> std::result::Result<Spec, String> {
    let u16_at = |at: usize| {
        u16::from_le_bytes([format.get(at).copied().unwrap_or(0), format.get(at + 1).copied().unwrap_or(0)])
    };
    let mut tag = u16_at(0);
    if tag == 0xfffe && length >= 26 {
        tag = u16_at(24);
    }
    let rate = u32::from(u16_at(4)) | u32::from(u16_at(6)) << 16;
    let (channels, bits) = (u16_at(2), u16_at(14));
    let stored = match (tag, bits) {
        (1, 8) => Format::U8,
        (1, 16) => Format::S16le,
        (1, 24) => Format::S24le,
        (1, 32) => Format::S32le,
        (3, 32) => Format::F32le,
        (6, 8) => Format::Alaw,
        (7, 8) => Format::Ulaw,
        _ => return Err(format!("WAV format {tag} with {bits} bits")),
    };
    let spec = Spec { format: stored, channels: u8::try_from(channels).unwrap_or(0), rate };
    if spec.is_valid() { Ok(spec) } else { Err(format!("{channels} channels at {rate} Hz")) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pcm::default_map;

    #[test]
    fn a_file_is_right_after_each_write_and_comes_back() {
        let scratch = rig::Scratch::new("wav");
        let path = scratch.join("a.wav");
        for format in [Format::U8, Format::Ulaw, Format::S16le, Format::S24le, Format::S32le, Format::F32le] {
            let spec = Spec { format, channels: 2, rate: 44_100 };
            let mut writer = Writer::create(&path, spec, &default_map(2)).unwrap();
            assert_eq!(Reader::open(&path).unwrap().frames(), 0);
            let samples: Vec<f64> = (0..200).map(|n| f64::from(n - 100) / 128.0).collect();
            let mut bytes = Vec::new();
            format.encode(&samples, &mut bytes);
            for block in bytes.chunks(spec.frame_bytes() * 30) {
                writer.write(block).unwrap();
                let reader = Reader::open(&path).unwrap();
                assert_eq!((reader.spec(), reader.frames()), (spec, writer.bytes() / spec.frame_bytes() as u64));
            }
            writer.write_silence(100_000).unwrap();
            let mut reader = Reader::open(&path).unwrap();
            let (mut back, mut expected) = (Vec::new(), Vec::new());
            assert_eq!(reader.read(100, &mut back).unwrap(), 100);
            format.decode(&bytes, &mut expected);
            assert_eq!(back, expected);
            back.clear();
            assert_eq!(reader.read(200_000, &mut back).unwrap(), 100_000);
            assert!(back.iter().all(|x| x.abs() < 0.0003));
        }
    }

    #[test]
    fn past_4_gib_it_is_rf64() {
        let scratch = rig::Scratch::new("wav");
        let path = scratch.join("a.wav");
        let spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };
        let mut writer = Writer::create(&path, spec, &default_map(2)).unwrap();
        writer.write_silence((1 << 30) - 100).unwrap();
        assert_eq!(
            std::fs::File::open(&path)
                .map(|mut f| {
                    let mut b = [0; 4];
                    f.read_exact(&mut b).unwrap();
                    b
                })
                .unwrap(),
            *b"RIFF"
        );
        writer.write_silence(100).unwrap();
        writer.write(&[1, 2, 3, 4]).unwrap();
        assert_eq!(
            std::fs::File::open(&path)
                .map(|mut f| {
                    let mut b = [0; 4];
                    f.read_exact(&mut b).unwrap();
                    b
                })
                .unwrap(),
            *b"RF64"
        );
        assert_eq!(Reader::open(&path).unwrap().frames(), (1 << 30) + 1);
    }

    #[test]
    fn what_is_no_wav_file_is_an_error() {
        let scratch = rig::Scratch::new("wav");
        let path = scratch.join("a.wav");
        let spec = Spec { format: Format::S16le, channels: 2, rate: 48_000 };
        Writer::create(&path, spec, &default_map(2)).unwrap().write(&[0; 400]).unwrap();
        let good = std::fs::read(&path).unwrap();
        for at in 0..104 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                std::fs::write(&path, &bad).unwrap();
                if let Ok(mut reader) = Reader::open(&path) {
                    assert!(reader.frames() <= 500);
                    let _ = reader.read(1 << 30, &mut Vec::new());
                }
            }
        }
        std::fs::write(&path, &good[..50]).unwrap();
        assert_eq!(Reader::open(&path).unwrap_err().kind(), Kind::Corrupt);
    }
}
