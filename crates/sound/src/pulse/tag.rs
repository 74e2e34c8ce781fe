//! Tagstructs: values one after the other, each behind a byte that says what it is. Numbers are big-endian.
//!
//! ```text
//! t text 0    N no text      L u32      B u8       R u64      r i64      1 true     0 false
//! a format u8, channels u8, rate u32    m channels u8, positions         v channels u8, volumes u32
//! x length u32, bytes        T seconds u32, microseconds u32             U microseconds u64    V volume u32
//! P properties: (t key, L length, x value) …, N                          f B encoding, P
//! ```

use crate::pcm::{CHANNELS_MAX, Format, Map, Position, Spec};

/// Most properties of one list.
pub const PROPERTIES_MAX: usize = 256;
/// Most bytes of the value of a property, as in PulseAudio.
pub const PROPERTY_BYTES_MAX: usize = 64 << 10;

/// The packet does not hold what the command demands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// What a value of a packet comes to.
pub type Result<T> = std::result::Result<T, Malformed>;

/// Properties of a client, a stream or a device: names and bytes (mostly text that ends with 0).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Properties(Vec<(String, Vec<u8>)>);

impl Properties {
    /// A list of texts.
    pub fn of(pairs: &[(&str, &str)]) -> Self {
        let mut list = Self::default();
        pairs.iter().for_each(|(key, value)| list.set_text(key, value));
        list
    }

    /// The value as text; `None` when there is none, or when it is no text.
    pub fn text(&self, key: &str) -> Option<&str> {
        let (_, value) = self.0.iter().find(|(name, _)| name == key)?;
        std::str::from_utf8(value.strip_suffix(&[0])?).ok()
    }

    /// Sets a text.
    pub fn set_text(&mut self, key: &str, value: &str) {
        self.set(key, [value.as_bytes(), &[0]].concat());
    }

    /// Sets a value; a list that is full stays as it is.
    pub fn set(&mut self, key: &str, value: Vec<u8>) {
        let full = self.0.len() >= PROPERTIES_MAX;
        match self.0.iter_mut().find(|(name, _)| name == key) {
            Some((_, old)) => *old = value,
            None if !full => self.0.push((key.to_owned(), value)),
            None => {}
        }
    }

    /// Takes a property out.
    pub fn remove(&mut self, key: &str) {
        self.0.retain(|(name, _)| name != key);
    }

    /// PulseAudio's update modes: 0 replaces the list, 1 adds what is missing, 2 adds and overwrites.
    pub fn update(&mut self, mode: u32, other: &Self) {
        if mode == 0 {
            self.0.clear();
        }
        for (key, value) in &other.0 {
            if mode != 1 || !self.0.iter().any(|(name, _)| name == key) {
                self.set(key, value.clone());
            }
        }
    }

    /// Every name and value.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &[u8])> {
        self.0.iter().map(|(key, value)| (key.as_str(), value.as_slice()))
    }
}

/// What a stream's samples are, in the extended form: an encoding (1: PCM) and properties such as `format.rate`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct FormatInfo {
    /// 1 is PCM.
    pub encoding: u8,
    /// JSON values.
    pub properties: Properties,
}

/// Reads values.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// From the beginning of a packet.
    pub fn new(packet: &'a [u8]) -> Self {
        Self { rest: packet }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(Malformed)?;
        self.rest = rest;
        Ok(taken)
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.take(N)?.try_into().map_err(|_| Malformed)
    }

    fn tag(&mut self, tag: u8) -> Result<()> {
        let [found] = self.bytes()?;
        if found == tag { Ok(()) } else { Err(Malformed) }
    }

    fn raw_u32(&mut self) -> Result<u32> {
        Ok(u32::from_be_bytes(self.bytes()?))
    }

    /// A number.
    pub fn u32(&mut self) -> Result<u32> {
        self.tag(b'L')?;
        self.raw_u32()
    }

    /// An index; `None` for the number that stands for none.
    pub fn index(&mut self) -> Result<Option<u32>> {
        self.u32().map(|index| Some(index).filter(|index| *index != u32::MAX))
    }

    /// A small number.
    pub fn u8(&mut self) -> Result<u8> {
        self.tag(b'B')?;
        let [byte] = self.bytes()?;
        Ok(byte)
    }

    /// Yes or no.
    pub fn bool(&mut self) -> Result<bool> {
        match self.bytes()? {
            [b'1'] => Ok(true),
            [b'0'] => Ok(false),
            _ => Err(Malformed),
        }
    }

    /// Answers that make no difference here.
    pub fn skip_bools(&mut self, count: usize) -> Result<()> {
        (0..count).try_for_each(|_| self.bool().map(|_| ()))
    }

    /// A text, or none. What is not UTF-8 is replaced.
    pub fn text(&mut self) -> Result<Option<String>> {
        match self.bytes()? {
            [b'N'] => Ok(None),
            [b't'] => {
                let length = self.rest.iter().position(|byte| *byte == 0).ok_or(Malformed)?;
                let text = String::from_utf8_lossy(self.take(length)?).into_owned();
                self.take(1)?;
                Ok(Some(text))
            }
            _ => Err(Malformed),
        }
    }

    /// Bytes.
    pub fn arbitrary(&mut self) -> Result<&'a [u8]> {
        self.tag(b'x')?;
        let length = self.raw_u32()?;
        self.take(length as usize)
    }

    /// A sample spec; the format is `None` for a number that none has.
    pub fn spec(&mut self) -> Result<(Option<Format>, u8, u32)> {
        self.tag(b'a')?;
        let [format, channels] = self.bytes()?;
        Ok((Format::from_number(format), channels, self.raw_u32()?))
    }

    /// A channel map.
    pub fn map(&mut self) -> Result<Map> {
        self.tag(b'm')?;
        let [channels] = self.bytes()?;
        if channels > CHANNELS_MAX {
            return Err(Malformed);
        }
        let map = self.take(usize::from(channels))?;
        if map.iter().all(|position| *position < Position::COUNT) {
            Ok(map.iter().copied().map(Position).collect())
        } else {
            Err(Malformed)
        }
    }

    /// The volumes of channels.
    pub fn volumes(&mut self) -> Result<Vec<u32>> {
        self.tag(b'v')?;
        let [channels] = self.bytes()?;
        if channels > CHANNELS_MAX {
            return Err(Malformed);
        }
        (0..channels).map(|_| self.raw_u32()).collect()
    }

    /// Seconds and microseconds.
    pub fn time(&mut self) -> Result<(u32, u32)> {
        self.tag(b'T')?;
        Ok((self.raw_u32()?, self.raw_u32()?))
    }

    /// A large number.
    pub fn u64(&mut self) -> Result<u64> {
        self.tag(b'R')?;
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    /// A large number with a sign.
    pub fn i64(&mut self) -> Result<i64> {
        self.tag(b'r')?;
        Ok(i64::from_be_bytes(self.bytes()?))
    }

    /// Microseconds.
    pub fn micros(&mut self) -> Result<u64> {
        self.tag(b'U')?;
        Ok(u64::from_be_bytes(self.bytes()?))
    }

    /// One volume.
    pub fn volume(&mut self) -> Result<u32> {
        self.tag(b'V')?;
        self.raw_u32()
    }

    /// Properties.
    pub fn properties(&mut self) -> Result<Properties> {
        self.tag(b'P')?;
        let mut list = Properties::default();
        while let Some(key) = self.text()? {
            let length = self.u32()? as usize;
            let value = self.arbitrary()?;
            if value.len() != length || length > PROPERTY_BYTES_MAX || list.0.len() >= PROPERTIES_MAX {
                return Err(Malformed);
            }
            list.set(&key, value.to_vec());
        }
        Ok(list)
    }

    /// A format in the extended form.
    pub fn format_info(&mut self) -> Result<FormatInfo> {
        self.tag(b'f')?;
        Ok(FormatInfo { encoding: self.u8()?, properties: self.properties()? })
    }

    /// What is left.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Nothing is left.
    pub fn end(&self) -> Result<()> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }

    /// Reads whatever comes until it makes no sense; for fuzzing.
    pub fn walk(&mut self) {
        while let Some(tag) = self.rest.first() {
            let read = match tag {
                b't' | b'N' => self.text().map(|_| ()),
                b'L' => self.u32().map(|_| ()),
                b'B' => self.u8().map(|_| ()),
                b'1' | b'0' => self.bool().map(|_| ()),
                b'a' => self.spec().map(|_| ()),
                b'm' => self.map().map(|_| ()),
                b'v' => self.volumes().map(|_| ()),
                b'x' => self.arbitrary().map(|_| ()),
                b'T' => self.time().map(|_| ()),
                b'R' => self.u64().map(|_| ()),
                b'r' => self.i64().map(|_| ()),
                b'U' => self.micros().map(|_| ()),
                b'V' => self.volume().map(|_| ()),
                b'P' => self.properties().map(|_| ()),
                b'f' => self.format_info().map(|_| ()),
                _ => return,
            };
            if read.is_err() {
                return;
            }
        }
    }
}

/// Writes values.
#[derive(Debug, Clone, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What another one wrote.
    pub fn append(&mut self, other: Self) -> &mut Self {
        self.bytes.extend(other.bytes);
        self
    }

    fn tagged(&mut self, tag: u8, bytes: &[u8]) -> &mut Self {
        self.bytes.push(tag);
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// A number.
    pub fn u32(&mut self, value: u32) -> &mut Self {
        self.tagged(b'L', &value.to_be_bytes())
    }

    /// An index, or the number that stands for none.
    pub fn index(&mut self, value: Option<u32>) -> &mut Self {
        self.u32(value.unwrap_or(u32::MAX))
    }

    /// A small number.
    pub fn u8(&mut self, value: u8) -> &mut Self {
        self.tagged(b'B', &[value])
    }

    /// A large number.
    pub fn u64(&mut self, value: u64) -> &mut Self {
        self.tagged(b'R', &value.to_be_bytes())
    }

    /// A large number with a sign.
    pub fn i64(&mut self, value: i64) -> &mut Self {
        self.tagged(b'r', &value.to_be_bytes())
    }

    /// Yes or no.
    pub fn bool(&mut self, value: bool) -> &mut Self {
        self.tagged(if value { b'1' } else { b'0' }, &[])
    }

    /// A text.
    pub fn text(&mut self, value: &str) -> &mut Self {
        self.tagged(b't', value.as_bytes());
        self.bytes.push(0);
        self
    }

    /// A text, or none.
    pub fn maybe_text(&mut self, value: Option<&str>) -> &mut Self {
        match value {
            Some(text) => self.text(text),
            None => self.tagged(b'N', &[]),
        }
    }

    /// Bytes.
    pub fn arbitrary(&mut self, value: &[u8]) -> &mut Self {
        self.tagged(b'x', &(value.len() as u32).to_be_bytes());
        self.bytes.extend_from_slice(value);
        self
    }

    /// A sample spec.
    pub fn spec(&mut self, spec: &Spec) -> &mut Self {
        self.tagged(b'a', &[spec.format.number(), spec.channels]);
        self.bytes.extend(spec.rate.to_be_bytes());
        self
    }

    /// A channel map.
    pub fn map(&mut self, map: &[Position]) -> &mut Self {
        self.tagged(b'm', &[map.len() as u8]);
        self.bytes.extend(map.iter().map(|position| position.0));
        self
    }

    /// The volumes of channels.
    pub fn volumes(&mut self, volumes: &[u32]) -> &mut Self {
        self.tagged(b'v', &[volumes.len() as u8]);
        self.bytes.extend(volumes.iter().flat_map(|volume| volume.to_be_bytes()));
        self
    }

    /// One volume.
    pub fn volume(&mut self, volume: u32) -> &mut Self {
        self.tagged(b'V', &volume.to_be_bytes())
    }

    /// Microseconds.
    pub fn micros(&mut self, micros: u64) -> &mut Self {
        self.tagged(b'U', &micros.to_be_bytes())
    }

    /// Seconds and microseconds.
    pub fn time(&mut self, (seconds, micros): (u32, u32)) -> &mut Self {
        self.tagged(b'T', &seconds.to_be_bytes());
        self.bytes.extend(micros.to_be_bytes());
        self
    }

    /// Properties.
    pub fn properties(&mut self, list: &Properties) -> &mut Self {
        self.tagged(b'P', &[]);
        for (key, value) in list.iter() {
            self.text(key).u32(value.len() as u32).arbitrary(value);
        }
        self.tagged(b'N', &[])
    }

    /// A format in the extended form.
    pub fn format_info(&mut self, info: &FormatInfo) -> &mut Self {
        self.tagged(b'f', &[]).u8(info.encoding).properties(&info.properties)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let spec = Spec { format: Format::S24le, channels: 2, rate: 96_000 };
        let map = crate::pcm::default_map(2);
        let properties = Properties::of(&[("media.name", "x"), ("a", "")]);
        let info = FormatInfo { encoding: 1, properties: properties.clone() };
        let mut writer = Writer::new();
        writer.u32(7).index(None).u8(9).bool(true).text("name").maybe_text(None).spec(&spec).map(&map);
        writer.volumes(&[1, 2]).time((3, 4)).properties(&properties).format_info(&info).arbitrary(&[5; 256]);
        let packet = writer.into_bytes();
        let mut reader = Reader::new(&packet);
        assert_eq!((reader.u32(), reader.index(), reader.u8(), reader.bool()), (Ok(7), Ok(None), Ok(9), Ok(true)));
        assert_eq!((reader.text(), reader.text()), (Ok(Some("name".to_owned())), Ok(None)));
        assert_eq!(reader.spec(), Ok((Some(Format::S24le), 2, 96_000)));
        assert_eq!((reader.map(), reader.volumes(), reader.time()), (Ok(map), Ok(vec![1, 2]), Ok((3, 4))));
        assert_eq!((reader.properties(), reader.format_info()), (Ok(properties), Ok(info)));
        assert_eq!(reader.arbitrary(), Ok(&[5; 256][..]));
        assert_eq!(reader.end(), Ok(()));
    }

    #[test]
    fn a_packet_cut_anywhere_is_malformed() {
        let mut writer = Writer::new();
        writer.properties(&Properties::of(&[("a", "b")]));
        let packet = writer.into_bytes();
        for end in 0..packet.len() {
            assert_eq!(Reader::new(&packet[..end]).properties(), Err(Malformed), "{end}");
        }
        assert_eq!(Reader::new(b"x\xff\xff\xff\xffa").arbitrary(), Err(Malformed));
        assert_eq!(Reader::new(b"m\x21").map(), Err(Malformed));
        assert_eq!(Reader::new(b"m\x01\x33").map(), Err(Malformed));
    }
}
