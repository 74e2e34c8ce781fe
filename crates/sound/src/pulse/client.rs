//! The other side of the protocol: a client, still without a socket.
//!
//! It speaks version 15, which every server since 2009 understands, and offers no shared memory.

use std::path::PathBuf;

use super::command::{code, op};
use super::frame::{self, Frame, Seek};
use super::tag::{Malformed, Properties, Reader, Writer};
use crate::pcm::{Map, Spec};
use crate::{Error, Kind, Result};

/// The version that is spoken.
pub const VERSION: u32 = 15;
/// Bytes of the secret that a server may ask for.
const COOKIE_BYTES: usize = 256;
/// Most devices of a list.
const DEVICES_MAX: usize = 4096;

/// What a server says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The answer to the command of that tag, behind command and tag.
    Reply(u32, Vec<u8>),
    /// It was not done, and why: a number of [`code`].
    Refused(u32, u32),
    /// Samples of a record stream, as much as has come.
    Samples(u32, Vec<u8>),
    /// A playback stream wants that many bytes.
    Request(u32, u32),
    /// A stream was ended by somebody else.
    Killed(u32),
}

/// A client. What [`Client::outgoing`] holds has to be sent.
#[derive(Debug, Default)]
pub struct Client {
    frames: frame::Reader,
    outgoing: Vec<u8>,
    /// The tag of the greeting that is not answered yet, and what is not sent before it is: pipewire-pulse knows of no
    /// device until then.
    greeting: Option<u32>,
    held: Vec<u8>,
    next_tag: u32,
}

impl Client {
    /// A client of that name, which says who it is.
    pub fn new(cookie: &[u8], name: &str) -> Self {
        let mut client = Self::default();
        client.send(op::AUTH, |packet| {
            packet.u32(VERSION).arbitrary(cookie);
        });
        let pid = std::process::id().to_string();
        let properties = Properties::of(&[("application.name", name), ("application.process.id", &pid)]);
        let greeting = client.send(op::SET_CLIENT_NAME, |packet| {
            packet.properties(&properties);
        });
        client.greeting = Some(greeting);
        client
    }

    /// Sends a command, as soon as the server has answered the greeting, and returns its tag.
    pub fn send(&mut self, command: u32, build: impl FnOnce(&mut Writer)) -> u32 {
        let tag = self.next_tag;
        self.next_tag = tag.wrapping_add(1) & 0x7fff_ffff;
        let mut packet = Writer::new();
        packet.u32(command).u32(tag);
        build(&mut packet);
        let wire = if self.greeting.is_some() { &mut self.held } else { &mut self.outgoing };
        frame::put_packet(&packet.into_bytes(), wire);
        tag
    }

    /// Sends samples to a playback stream, `skip` bytes behind those that were sent before.
    pub fn samples(&mut self, channel: u32, skip: i64, bytes: &[u8]) {
        let mut skip = skip;
        for part in bytes.chunks(64 << 10) {
            frame::put_samples_at(channel, Seek::Relative, skip, part, &mut self.outgoing);
            skip = 0;
        }
    }

    /// Bytes that wait to be sent.
    pub fn waiting(&self) -> usize {
        self.outgoing.len()
    }

    /// What waits to be sent. Whoever sends removes it from the front.
    pub fn outgoing(&mut self) -> &mut Vec<u8> {
        &mut self.outgoing
    }

    /// Takes what the server sent.
    ///
    /// # Errors
    /// [`Kind::Corrupt`] for what is not the protocol.
    pub fn receive(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<()> {
        let corrupt = || Error::new(Kind::Corrupt, "answer of the sound server");
        let mut rest = bytes;
        while let Some((frame, taken)) = self.frames.next(rest).map_err(|_| corrupt())? {
            match frame {
                Frame::Packet(packet) => {
                    let event = event(&packet).map_err(|_| corrupt())?;
                    if let Some(Event::Reply(tag, _)) = event
                        && Some(tag) == self.greeting
                    {
                        self.greeting = None;
                        self.outgoing.append(&mut self.held);
                    }
                    events.extend(event);
                }
                Frame::Samples { channel, bytes, .. } => events.push(Event::Samples(channel, bytes.to_vec())),
            }
            rest = rest.get(taken..).unwrap_or_default();
        }
        Ok(())
    }
}

fn event(packet: &[u8]) -> std::result::Result<Option<Event>, Malformed> {
    let mut reader = Reader::new(packet);
    let (command, tag) = (reader.u32()?, reader.u32()?);
    Ok(match command {
        op::REPLY => Some(Event::Reply(tag, reader.rest().to_vec())),
        op::ERROR => Some(Event::Refused(tag, reader.u32()?)),
        op::REQUEST => Some(Event::Request(reader.u32()?, reader.u32()?)),
        op::PLAYBACK_STREAM_KILLED | op::RECORD_STREAM_KILLED => Some(Event::Killed(reader.u32()?)),
        _ => None,
    })
}

/// A source or a sink, as a server tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its number.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What it is called for people.
    pub description: String,
    /// Its samples.
    pub spec: Spec,
    /// Where its channels are.
    pub map: Map,
    /// Whether it is muted.
    pub muted: bool,
    /// Of a source the sink that it is the monitor of; of a sink its monitor.
    pub monitor: Option<String>,
    /// 0 running, 1 idle, 2 suspended.
    pub state: u32,
}

impl Device {
    /// Reads one from the answer to `GET_SINK_INFO` or `GET_SOURCE_INFO`.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read(reader: &mut Reader<'_>) -> std::result::Result<Self, Malformed> {
        let (index, name, description) = (reader.u32()?, reader.text()?, reader.text()?);
        let ((format, channels, rate), map) = (reader.spec()?, reader.map()?);
        reader.index()?;
        reader.volumes()?;
        let muted = reader.bool()?;
        reader.index()?;
        let monitor = reader.text()?;
        reader.micros()?;
        reader.text()?;
        reader.u32()?;
        reader.properties()?;
        reader.micros()?;
        reader.volume()?;
        let state = reader.u32()?;
        reader.u32()?;
        reader.index()?;
        let spec = Spec { format: format.ok_or(Malformed)?, channels, rate };
        if !spec.is_valid() || map.len() != usize::from(channels) {
            return Err(Malformed);
        }
        let (name, description) = (name.unwrap_or_default(), description.unwrap_or_default());
        Ok(Self { index, name, description, spec, map, muted, monitor, state })
    }

    /// Reads a list of them.
    ///
    /// # Errors
    /// [`Malformed`].
    pub fn read_list(packet: &[u8]) -> std::result::Result<Vec<Self>, Malformed> {
        let mut reader = Reader::new(packet);
        let mut devices = Vec::new();
        while reader.end().is_err() {
            if devices.len() == DEVICES_MAX {
                return Err(Malformed);
            }
            devices.push(Self::read(&mut reader)?);
        }
        Ok(devices)
    }
}

/// What an error of a server means.
pub fn meaning(number: u32) -> (Kind, &'static str) {
    match number {
        code::ACCESS => (Kind::Denied, "access denied"),
        code::INVALID => (Kind::Invalid, "invalid argument"),
        code::NOENTITY => (Kind::NotFound, "no such device"),
        code::TOOLARGE => (Kind::Limit, "too large"),
        code::VERSION => (Kind::Unsupported, "the versions of the protocol do not match"),
        code::NOTSUPPORTED | code::NOTIMPLEMENTED => (Kind::Unsupported, "not supported"),
        _ => (Kind::Io, "refused"),
    }
}

/// The socket of a server by its address as in `PULSE_SERVER`; without one that of this user's server.
///
/// # Errors
/// [`Kind::Unsupported`] for an address that is no unix socket, [`Kind::NotFound`] when there is no server.
pub fn socket(address: Option<&str>) -> Result<PathBuf> {
    let variable = std::env::var("PULSE_SERVER").ok().filter(|address| !address.is_empty());
    if let Some(address) = address.or(variable.as_deref()) {
        // A list, and each may begin with the machine that it is meant for.
        let first = address.split_whitespace().next().unwrap_or_default();
        let first = first.strip_prefix('{').and_then(|rest| rest.split_once('}')).map_or(first, |(_, rest)| rest);
        let path = first.strip_prefix("unix:").unwrap_or(first);
        if !path.starts_with(['/', '.']) && (path.contains(':') || !std::path::Path::new(path).exists()) {
            let what = format!("sound server `{address}`: only unix sockets (`unix:/run/user/1000/pulse/native`)");
            return Err(Error::new(Kind::Unsupported, what));
        }
        return Ok(path.into());
    }
    let runtime = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let user = format!("/run/user/{}/pulse/native", rustix::process::getuid().as_raw());
    let places = [
        runtime("PULSE_RUNTIME_PATH").map(|folder| folder.join("native")),
        runtime("XDG_RUNTIME_DIR").map(|folder| folder.join("pulse/native")),
        Some(user.into()),
        Some("/run/pulse/native".into()),
    ];
    places.into_iter().flatten().find(|path| path.exists()).ok_or_else(|| {
        Error::new(
            Kind::NotFound,
            "no sound server of this user: start one (`loopbox sound card`), or set PULSE_SERVER",
        )
    })
}

/// The secret of this user's servers, or zeros where there is none.
pub fn cookie() -> Vec<u8> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let places = [
        std::env::var_os("PULSE_COOKIE").map(PathBuf::from),
        home.as_ref().map(|home| home.join(".config/pulse/cookie")),
        home.as_ref().map(|home| home.join(".pulse-cookie")),
    ];
    let found = places.into_iter().flatten().find_map(|path| {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).ok()?;
        std::io::Read::read_to_end(&mut std::io::Read::take(file, COOKIE_BYTES as u64), &mut bytes).ok()?;
        (bytes.len() == COOKIE_BYTES).then_some(bytes)
    });
    found.unwrap_or_else(|| vec![0; COOKIE_BYTES])
}
