#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;

use backing::Memory;
use block::layer::ReadOnly;
use block::{BlockDevice, Kind, ReadAt as _};

use super::wire::{self, answer, command, error, flag, info, option, transmission};
use super::{Export, PAYLOAD_BYTES_MAX, serve_one};

const SIZE: u64 = 1 << 20;

/// How headers look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Simple,
    Structured,
    Extended,
}

const WAYS: [Way; 3] = [Way::Simple, Way::Structured, Way::Extended];

/// A memory of 1 MiB: byte n of the first 64 KiB is n, all else a hole.
fn disk() -> Arc<dyn BlockDevice> {
    let memory = Memory::new(SIZE).unwrap();
    let bytes: Vec<u8> = (0..65536_u32).map(|n| n as u8).collect();
    memory.write_at(&bytes, 0).unwrap();
    Arc::new(memory)
}

fn exports(device: &Arc<dyn BlockDevice>) -> Vec<Export> {
    let export = |name: &str, device: Arc<dyn BlockDevice>| Export {
        name: name.to_owned(),
        description: format!("the {name} one"),
        device,
        counters: Arc::default(),
    };
    vec![export("first", device.clone()), export("second", Arc::new(ReadOnly::new(device.clone())))]
}

/// A server and our end of its stream.
struct Client {
    stream: UnixStream,
    server: Option<JoinHandle<block::Result<()>>>,
    way: Way,
}

/// One chunk of an answer, or a simple one: flags, kind (or error), cookie, payload.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Reply {
    Simple { error: u32, cookie: u64 },
    Chunk { last: bool, kind: u16, cookie: u64, payload: Vec<u8> },
}

impl Client {
    /// One that has said nothing yet, and has heard the greeting.
    fn new(device: &Arc<dyn BlockDevice>, flags: u32) -> Self {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        let exports = exports(device);
        let output = theirs.try_clone().unwrap();
        let server = std::thread::spawn(move || {
            let served = serve_one(&theirs, output, &exports);
            let _ = theirs.shutdown(std::net::Shutdown::Both);
            served
        });
        let mut client = Self { stream: ours, server: Some(server), way: Way::Simple };
        let hello = client.bytes(18);
        assert_eq!(hello[..8], wire::NBDMAGIC.to_be_bytes());
        assert_eq!(hello[8..16], wire::IHAVEOPT.to_be_bytes());
        assert_eq!(hello[16..], [0, 3]);
        client.send(&flags.to_be_bytes());
        client
    }

    /// One that has agreed on the first export, and on block status where that is possible.
    fn agreed(device: &Arc<dyn BlockDevice>, way: Way) -> Self {
        Self::agreed_on(device, way, "first")
    }

    fn agreed_on(device: &Arc<dyn BlockDevice>, way: Way, name: &str) -> Self {
        let mut client = Self::new(device, 3);
        match way {
            Way::Simple => {}
            Way::Structured => assert_eq!(client.option(option::STRUCTURED_REPLY, &[]), [(answer::ACK, vec![])]),
            Way::Extended => assert_eq!(client.option(option::EXTENDED_HEADERS, &[]), [(answer::ACK, vec![])]),
        }
        if way != Way::Simple {
            let answers = client.option(option::SET_META_CONTEXT, &contexts(name, &["base:allocation"]));
            assert_eq!(answers.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), [answer::META_CONTEXT, answer::ACK]);
        }
        let answers = client.option(option::GO, &named(name, &[]));
        assert_eq!(answers.last().unwrap().0, answer::ACK);
        client.way = way;
        client
    }

    fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.stream.read_exact(&mut bytes).unwrap();
        bytes
    }

    fn u16(&mut self) -> u16 {
        u16::from_be_bytes(self.bytes(2).try_into().unwrap())
    }

    fn u32(&mut self) -> u32 {
        u32::from_be_bytes(self.bytes(4).try_into().unwrap())
    }

    fn u64(&mut self) -> u64 {
        u64::from_be_bytes(self.bytes(8).try_into().unwrap())
    }

    /// Sends an option and hears its answers up to the last.
    fn option(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        let head = [&wire::IHAVEOPT.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes()];
        self.send(&[&head.concat(), data].concat());
        let mut answers = Vec::new();
        loop {
            assert_eq!(self.u64(), wire::OPTION_REPLY);
            assert_eq!(self.u32(), number);
            let kind = self.u32();
            let len = self.u32() as usize;
            answers.push((kind, self.bytes(len)));
            if kind == answer::ACK || kind & (1 << 31) != 0 {
                return answers;
            }
        }
    }

    fn refused(&mut self, number: u32, data: &[u8]) -> u32 {
        let answers = self.option(number, data);
        assert_eq!(answers.len(), 1, "{answers:?}");
        assert!(!answers[0].1.is_empty(), "an error without a sentence");
        answers[0].0
    }

    fn request(&mut self, kind: u16, flags: u16, cookie: u64, offset: u64, len: u64, payload: &[u8]) {
        let bytes = request(self.way, kind, flags, cookie, offset, len);
        self.send(&[&bytes, payload].concat());
    }

    fn reply(&mut self) -> Reply {
        match self.u32() {
            wire::REPLY_SIMPLE => Reply::Simple { error: self.u32(), cookie: self.u64() },
            magic => {
                let extended = self.way == Way::Extended;
                assert_eq!(magic, if extended { wire::REPLY_CHUNK_EXTENDED } else { wire::REPLY_CHUNK });
                let (flags, kind, cookie) = (self.u16(), self.u16(), self.u64());
                assert!(flags <= 1);
                let len = if extended {
                    self.u64();
                    self.u64()
                } else {
                    u64::from(self.u32())
                };
                Reply::Chunk { last: flags == 1, kind, cookie, payload: self.bytes(len as usize) }
            }
        }
    }

    /// All chunks of one answer.
    fn replies(&mut self) -> Vec<Reply> {
        let mut replies = Vec::new();
        loop {
            replies.push(self.reply());
            if !matches!(replies.last(), Some(Reply::Chunk { last: false, .. })) {
                return replies;
            }
        }
    }

    /// Sends a request and hears its error, 0 for none.
    fn error_of(&mut self, kind: u16, flags: u16, offset: u64, len: u64, payload: &[u8]) -> u32 {
        self.request(kind, flags, 77, offset, len, payload);
        let replies = self.replies();
        if kind == command::READ && matches!(replies[0], Reply::Simple { error: 0, .. }) {
            self.bytes(len as usize);
        }
        match replies.last().unwrap() {
            Reply::Simple { error, cookie: 77 } => *error,
            Reply::Chunk { kind: wire::chunk::ERROR, payload, cookie: 77, .. } => {
                let len = u16::from_be_bytes([payload[4], payload[5]]);
                assert_eq!(payload.len(), 6 + usize::from(len));
                assert!(std::str::from_utf8(&payload[6..]).is_ok() && len > 0);
                u32::from_be_bytes(payload[..4].try_into().unwrap())
            }
            Reply::Chunk { cookie: 77, .. } => 0,
            other => panic!("{other:?}"),
        }
    }

    /// Reads, and puts the chunks together.
    fn read(&mut self, offset: u64, len: u64, flags: u16) -> Vec<u8> {
        self.request(command::READ, flags, 5, offset, len, &[]);
        let replies = self.replies();
        if self.way == Way::Simple {
            assert_eq!(replies, [Reply::Simple { error: 0, cookie: 5 }]);
            return self.bytes(len as usize);
        }
        let mut bytes = vec![0xaa; len as usize];
        let mut told = 0;
        for reply in replies {
            let Reply::Chunk { kind, payload, cookie: 5, .. } = reply else { panic!("{reply:?}") };
            if kind == wire::chunk::NONE {
                continue;
            }
            let at = (u64::from_be_bytes(payload[..8].try_into().unwrap()) - offset) as usize;
            let data = match kind {
                wire::chunk::OFFSET_DATA => payload[8..].to_vec(),
                wire::chunk::OFFSET_HOLE => vec![0; u32::from_be_bytes(payload[8..].try_into().unwrap()) as usize],
                other => panic!("chunk {other}"),
            };
            assert!(!data.is_empty());
            told += data.len();
            bytes[at..at + data.len()].copy_from_slice(&data);
        }
        assert_eq!(told, len as usize, "each byte is told once");
        bytes
    }

    /// Hangs up, and says what came of it.
    fn end(mut self) -> block::Result<()> {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        self.server.take().unwrap().join().unwrap()
    }

    /// Whether the server has hung up.
    fn is_hung_up(&mut self) -> bool {
        matches!(self.stream.read(&mut [0]), Ok(0))
    }
}

fn request(way: Way, kind: u16, flags: u16, cookie: u64, offset: u64, len: u64) -> Vec<u8> {
    let magic = if way == Way::Extended { wire::REQUEST_EXTENDED } else { wire::REQUEST };
    let mut bytes = [&magic.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    if way == Way::Extended {
        bytes.extend(len.to_be_bytes());
    } else {
        bytes.extend(u32::try_from(len).unwrap().to_be_bytes());
    }
    bytes
}

fn text(text: &str) -> Vec<u8> {
    [&(text.len() as u32).to_be_bytes()[..], text.as_bytes()].concat()
}

fn named(name: &str, kinds: &[u16]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((kinds.len() as u16).to_be_bytes());
    data.extend(kinds.iter().flat_map(|kind| kind.to_be_bytes()));
    data
}

fn contexts(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = text(name);
    data.extend((queries.len() as u32).to_be_bytes());
    data.extend(queries.iter().flat_map(|query| text(query)));
    data
}

#[test]
fn the_exports_are_listed_and_described() {
    let device = disk();
    let mut client = Client::new(&device, 3);
    let listed = client.option(option::LIST, &[]);
    let first = [text("first"), b"the first one".to_vec()].concat();
    let second = [text("second"), b"the second one".to_vec()].concat();
    assert_eq!(listed, [(answer::SERVER, first), (answer::SERVER, second), (answer::ACK, vec![])]);
    for (name, found, flags) in [
        ("", "first", transmission::SEND_TRIM | transmission::SEND_WRITE_ZEROES | transmission::SEND_FAST_ZERO),
        ("second", "second", transmission::READ_ONLY),
    ] {
        let answers = client.option(option::INFO, &named(name, &[info::NAME, info::DESCRIPTION]));
        let flags = flags | 1 | transmission::SEND_FLUSH | transmission::SEND_FUA | transmission::SEND_CACHE;
        let flags = flags | transmission::CAN_MULTI_CONN;
        let export = [&[0, 0][..], &SIZE.to_be_bytes(), &flags.to_be_bytes()].concat();
        assert_eq!(answers[0], (answer::INFO, export));
        assert_eq!(answers[1], (answer::INFO, [&[0, 1], found.as_bytes()].concat()));
        assert_eq!(answers[2], (answer::INFO, format!("\0\u{2}the {found} one").into_bytes()));
        assert_eq!(answers[3].1[..6], [0, 3, 0, 0, 0, 1]);
        assert_eq!(answers[3].1[10..], PAYLOAD_BYTES_MAX.to_be_bytes());
        assert_eq!(answers[4], (answer::ACK, vec![]));
    }
    assert_eq!(client.option(option::ABORT, &[]), [(answer::ACK, vec![])]);
    assert!(client.is_hung_up());
    client.end().unwrap();
}

#[test]
fn what_is_wrong_with_an_option_is_said_and_the_next_one_heard() {
    let device = disk();
    let mut client = Client::new(&device, 3);
    assert_eq!(client.refused(4711, b"x"), answer::ERR_UNSUP);
    assert_eq!(client.refused(option::STARTTLS, &[]), answer::ERR_POLICY);
    assert_eq!(client.refused(option::LIST, b"x"), answer::ERR_INVALID);
    for number in [option::INFO, option::GO] {
        assert_eq!(client.refused(number, &named("none", &[])), answer::ERR_UNKNOWN);
        for data in [&[][..], &[0; 5], &named("first", &[1])[..9], &[0xff; 16]] {
            assert_eq!(client.refused(number, data), answer::ERR_INVALID, "{data:?}");
        }
    }
    assert_eq!(client.refused(option::SET_META_CONTEXT, &contexts("first", &[])), answer::ERR_INVALID);
    assert_eq!(client.refused(option::STRUCTURED_REPLY, b"x"), answer::ERR_INVALID);
    assert_eq!(client.option(option::STRUCTURED_REPLY, &[]), [(answer::ACK, vec![])]);
    assert_eq!(client.refused(option::STRUCTURED_REPLY, &[]), answer::ERR_INVALID);
    assert_eq!(client.refused(option::EXTENDED_HEADERS, b"x"), answer::ERR_INVALID);
    assert_eq!(client.option(option::EXTENDED_HEADERS, &[]), [(answer::ACK, vec![])]);
    assert_eq!(client.refused(option::EXTENDED_HEADERS, &[]), answer::ERR_INVALID);
    assert_eq!(client.refused(option::STRUCTURED_REPLY, &[]), answer::ERR_EXT_HEADER_REQD);
    for number in [option::LIST_META_CONTEXT, option::SET_META_CONTEXT] {
        assert_eq!(client.refused(number, &contexts("none", &[])), answer::ERR_UNKNOWN);
        assert_eq!(client.refused(number, &[0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff]), answer::ERR_INVALID);
        assert_eq!(client.refused(number, &[contexts("", &["a:b"]), vec![0]].concat()), answer::ERR_INVALID);
    }
    assert_eq!(client.refused(option::LIST, &vec![0; 70 << 10]), answer::ERR_TOO_BIG);
    assert_eq!(client.option(option::GO, &named("", &[])).last().unwrap().0, answer::ACK);
    client.end().unwrap();
}

#[test]
fn contexts_are_found_by_name_and_by_name_space() {
    let device = disk();
    let mut client = Client::new(&device, 3);
    client.option(option::STRUCTURED_REPLY, &[]);
    let mut count = |number, queries: &[&str]| client.option(number, &contexts("", queries)).len() - 1;
    assert_eq!(count(option::LIST_META_CONTEXT, &[]), 1);
    assert_eq!(count(option::LIST_META_CONTEXT, &["base:"]), 1);
    assert_eq!(count(option::LIST_META_CONTEXT, &["qemu:dirty-bitmap"]), 0);
    assert_eq!(count(option::SET_META_CONTEXT, &["other:thing", "base:allocation"]), 1);
    assert_eq!(count(option::SET_META_CONTEXT, &[]), 0);
    // Nothing was chosen last; and what is chosen for one export is not for another.
    for (chosen, name) in [(None, "first"), (Some("second"), "first")] {
        let mut client = Client::new(&device, 3);
        client.option(option::STRUCTURED_REPLY, &[]);
        if let Some(chosen) = chosen {
            client.option(option::SET_META_CONTEXT, &contexts(chosen, &["base:allocation"]));
        }
        client.option(option::GO, &named(name, &[]));
        client.way = Way::Structured;
        assert_eq!(client.error_of(command::BLOCK_STATUS, 0, 0, 512, &[]), error::INVAL);
        client.end().unwrap();
    }
}

#[test]
fn the_old_way_to_name_an_export() {
    let device = disk();
    for (flags, len) in [(1, 134), (3, 10)] {
        let mut client = Client::new(&device, flags);
        client.send(&[&wire::IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 1, 0, 0, 0, 5], b"first"].concat());
        let answer = client.bytes(len);
        assert_eq!(answer[..8], SIZE.to_be_bytes());
        assert!(answer[10..].iter().all(|byte| *byte == 0));
        assert_eq!(client.read(1, 3, 0), [1, 2, 3]);
        client.end().unwrap();
    }
    for name in ["none".to_owned(), "x".repeat(70 << 10)] {
        let mut client = Client::new(&device, 3);
        client.send(&[&wire::IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 1], &text(&name)].concat());
        assert!(matches!(client.stream.read(&mut [0]), Ok(0) | Err(_)));
        assert!(client.end().is_err());
    }
}

#[test]
fn every_request_in_every_dialect() {
    for way in WAYS {
        let device = disk();
        let mut client = Client::agreed(&device, way);
        let write = if way == Way::Extended { flag::PAYLOAD_LEN } else { 0 };
        let content: Vec<u8> = (0..65536_u32).map(|n| n as u8).collect();
        assert_eq!(client.read(0, 65536, 0), content);
        assert_eq!(client.read(100, 1, 0), [100]);
        let mut across = content[60_000..].to_vec();
        across.resize(20_000, 0);
        assert_eq!(client.read(60_000, 20_000, 0), across);
        if way != Way::Simple {
            assert_eq!(client.read(60_000, 20_000, flag::DF), across);
        }

        assert_eq!(client.error_of(command::WRITE, write, 70_001, 5, b"hello"), 0);
        assert_eq!(client.read(70_000, 7, 0), b"\0hello\0");
        assert_eq!(client.error_of(command::WRITE, write | flag::FUA, 70_001, 1, b"j"), 0);
        for (flags, at) in [(0, 1), (flag::NO_HOLE, 8193), (flag::FUA | flag::FAST_ZERO, 65536 + 16384)] {
            assert_eq!(client.error_of(command::WRITE_ZEROES, flags, at, 4097, &[]), 0);
            assert_eq!(client.read(at, 4097, 0), [0; 4097]);
        }
        assert_eq!(client.error_of(command::TRIM, flag::FUA, 8192, 8192, &[]), 0);
        assert_eq!(client.error_of(command::FLUSH, 0, 0, 0, &[]), 0);
        assert_eq!(client.error_of(command::CACHE, 0, 0, SIZE, &[]), 0);
        assert_eq!(client.read(0, 1, 0), [0]);
        assert_eq!(client.read(70_001, 5, 0), b"jello");
        client.request(command::DISCONNECT, 0, 1, 0, 0, &[]);
        assert!(client.is_hung_up());
        client.end().unwrap();
        let mut there = [0; 5];
        device.read_at(&mut there, 70_001).unwrap();
        assert_eq!(&there, b"jello");
    }
}

#[test]
fn every_error_in_every_dialect_and_the_connection_goes_on() {
    for way in WAYS {
        let device = disk();
        let mut client = Client::agreed(&device, way);
        let p = if way == Way::Extended { flag::PAYLOAD_LEN } else { 0 };
        let too_long = u64::from(PAYLOAD_BYTES_MAX) + 1;
        let payload = vec![7; too_long as usize];
        let mut is = |kind, flags, offset, len, payload: &[u8], wanted| {
            let found = client.error_of(kind, flags, offset, len, payload);
            assert_eq!(found, wanted, "{way:?}: request {kind}, flags {flags:#x}, {len} bytes at {offset}");
        };
        is(command::READ, 0, SIZE, 1, &[], error::INVAL);
        is(command::READ, 0, SIZE - 1, 2, &[], error::INVAL);
        is(command::READ, 0, u64::MAX, 2, &[], error::INVAL);
        is(command::READ, 1 << 15, 0, 1, &[], error::INVAL);
        is(command::READ, flag::NO_HOLE, 0, 1, &[], error::INVAL);
        is(command::READ, 0, 0, too_long, &[], error::INVAL);
        is(command::WRITE, p, SIZE - 1, 2, b"xy", error::NOSPC);
        is(command::WRITE, p | flag::DF, 0, 2, b"xy", error::INVAL);
        is(command::WRITE, p, 0, too_long, &payload, error::INVAL);
        is(command::WRITE_ZEROES, 0, SIZE, 1, &[], error::NOSPC);
        is(command::WRITE_ZEROES, flag::FAST_ZERO, 0, 65536, &[], error::NOTSUP);
        is(command::TRIM, 0, SIZE - 1, 2, &[], error::INVAL);
        is(command::CACHE, 0, SIZE - 1, 2, &[], error::INVAL);
        is(command::FLUSH, flag::DF, 0, 0, &[], error::INVAL);
        is(command::BLOCK_STATUS, 0, SIZE, 1, &[], error::INVAL);
        for kind in [command::READ, command::CACHE, command::TRIM, command::WRITE_ZEROES, command::BLOCK_STATUS] {
            is(kind, 0, 0, 0, &[], error::INVAL);
        }
        is(command::WRITE, p, SIZE, 0, &[], error::INVAL);
        is(4711, 0, 0, 0, &[], error::INVAL);
        if way == Way::Simple {
            is(command::READ, flag::DF, 0, 1, &[], error::INVAL);
            is(command::BLOCK_STATUS, 0, 0, 512, &[], error::INVAL);
        }
        if way == Way::Extended {
            is(command::WRITE_ZEROES, 0, 0, u64::MAX, &[], error::NOSPC);
            is(command::BLOCK_STATUS, flag::PAYLOAD_LEN, 0, 3, b"abc", error::INVAL);
        }
        assert_eq!(client.read(9, 1, 0), [9]);
        client.end().unwrap();

        let mut client = Client::agreed_on(&device, way, "second");
        assert_eq!(client.error_of(command::WRITE, p, 0, 2, b"xy"), error::PERM);
        assert_eq!(client.error_of(command::TRIM, 0, 0, 2, &[]), error::PERM);
        assert_eq!(client.error_of(command::WRITE_ZEROES, 0, 0, 2, &[]), error::PERM);
        assert_eq!(client.error_of(command::FLUSH, 0, 0, 0, &[]), 0);
        assert_eq!(client.read(9, 1, 0), [9]);
        client.end().unwrap();
    }
}

/// Runs of a block status: length and state.
fn statuses(client: &mut Client, flags: u16, offset: u64, len: u64) -> Vec<(u64, u64)> {
    client.request(command::BLOCK_STATUS, flags, 3, offset, len, &[]);
    let Reply::Chunk { last: true, kind, cookie: 3, payload } = client.reply() else { panic!() };
    assert_eq!(payload[..4], [0, 0, 0, 1]);
    let long = |bytes: &[u8]| u64::from_be_bytes(bytes.try_into().unwrap());
    let short = |bytes: &[u8]| u64::from(u32::from_be_bytes(bytes.try_into().unwrap()));
    if client.way == Way::Extended {
        assert_eq!(kind, wire::chunk::BLOCK_STATUS_EXT);
        let runs: Vec<_> = payload[8..].chunks(16).map(|run| (long(&run[..8]), long(&run[8..]))).collect();
        assert_eq!(short(&payload[4..8]), runs.len() as u64);
        return runs;
    }
    assert_eq!(kind, wire::chunk::BLOCK_STATUS);
    payload[4..].chunks(8).map(|run| (short(&run[..4]), short(&run[4..]))).collect()
}

#[test]
fn block_status_tells_holes_from_data() {
    for way in [Way::Structured, Way::Extended] {
        let mut client = Client::agreed(&disk(), way);
        assert_eq!(statuses(&mut client, 0, 0, SIZE), [(65536, 0), (SIZE - 65536, 3)]);
        assert_eq!(statuses(&mut client, flag::REQ_ONE, 0, SIZE), [(65536, 0)]);
        assert_eq!(statuses(&mut client, 0, 65535, 2), [(1, 0), (1, 3)]);
        client.end().unwrap();
    }
    // Runs that 32 bits cannot say are cut at a length that blocks of any size divide.
    let size = 10 << 30;
    let device: Arc<dyn BlockDevice> = Arc::new(Memory::new(size).unwrap());
    let mut client = Client::agreed(&device, Way::Extended);
    assert_eq!(statuses(&mut client, 0, 0, size), [(size, 3)]);
    client.end().unwrap();
    let mut client = Client::agreed(&device, Way::Structured);
    let runs = statuses(&mut client, 0, 0, u64::from(u32::MAX));
    assert_eq!(runs[0].0 % 65536, 0);
    assert_eq!(runs.iter().map(|run| run.0).sum::<u64>(), u64::from(u32::MAX));
    client.end().unwrap();
}

#[test]
fn a_request_in_pieces_and_many_in_one() {
    for way in WAYS {
        let device = disk();
        let mut client = Client::agreed(&device, way);
        for byte in request(way, command::READ, 0, 9, 1, 2) {
            client.send(&[byte]);
        }
        assert!(matches!(client.reply(), Reply::Simple { cookie: 9, .. } | Reply::Chunk { cookie: 9, .. }));
        if way == Way::Simple {
            client.bytes(2);
        }
        // Of each kind, so that some are handed to workers: each is answered once.
        let mut bytes = Vec::new();
        for n in 0..1000_u64 {
            let kind = [command::FLUSH, command::TRIM, command::WRITE_ZEROES, command::CACHE][n as usize % 4];
            bytes.extend(request(way, kind, 0, n, 65536 + n * 512, 512));
        }
        let mut writer = client.stream.try_clone().unwrap();
        let sending = std::thread::spawn(move || writer.write_all(&bytes).unwrap());
        let mut heard = vec![false; 1000];
        for _ in 0..1000 {
            let cookie = match client.reply() {
                Reply::Simple { error: 0, cookie } => cookie,
                Reply::Chunk { last: true, kind: wire::chunk::NONE, cookie, .. } => cookie,
                other => panic!("{other:?}"),
            };
            assert!(!std::mem::replace(&mut heard[cookie as usize], true), "{cookie} twice");
        }
        sending.join().unwrap();
        client.end().unwrap();
    }
}

#[test]
fn a_client_that_breaks_off_or_talks_nonsense_is_hung_up_on() {
    let device = disk();
    for way in WAYS {
        let mut client = Client::agreed(&device, way);
        client.send(&[0x25; 40]);
        assert!(client.is_hung_up());
        assert_eq!(client.end().unwrap_err().kind(), Kind::Invalid);

        let mut client = Client::agreed(&device, way);
        client.send(&request(way, command::READ, 0, 1, 0, 1)[..20]);
        assert_eq!(client.end().unwrap_err().kind(), Kind::Disconnected);

        // Half of a payload: nothing of it is written.
        let mut client = Client::agreed(&device, way);
        client.send(&request(way, command::WRITE, 0, 1, 0, 1000));
        client.send(&[0xee; 500]);
        assert_eq!(client.end().unwrap_err().kind(), Kind::Disconnected);
        let mut byte = [0];
        device.read_at(&mut byte, 1).unwrap();
        assert_eq!(byte, [1]);
    }
    let mut client = Client::agreed(&device, Way::Extended);
    client.send(&request(Way::Extended, command::WRITE, 0, 1, 0, u64::MAX));
    assert!(client.is_hung_up());
    assert_eq!(client.end().unwrap_err().kind(), Kind::Limit);
    // Options without an end.
    let mut client = Client::new(&device, 3);
    for _ in 0..super::OPTIONS_MAX {
        client.refused(999, &[]);
    }
    assert!(client.is_hung_up());
    assert_eq!(client.end().unwrap_err().kind(), Kind::Limit);
    let mut client = Client::new(&device, 3);
    client.send(&[&wire::IHAVEOPT.to_be_bytes()[..], &[0, 0, 0, 3, 0xff, 0xff, 0xff, 0xff]].concat());
    assert!(client.is_hung_up());
    assert_eq!(client.end().unwrap_err().kind(), Kind::Limit);
    // An old client, which does not know of fixed newstyle, and one with flags that nobody knows.
    for flags in [0, 0x8000_0003] {
        let mut client = Client::new(&device, flags);
        assert!(client.is_hung_up());
        assert_eq!(client.end().unwrap_err().kind(), Kind::Invalid);
    }
}

#[test]
fn a_client_that_never_reads_holds_up_only_itself() {
    let device = disk();
    let mut flood = Client::agreed(&device, Way::Structured);
    flood.stream.set_nonblocking(true).unwrap();
    let many: Vec<u8> = (0..512).flat_map(|n| request(Way::Structured, command::READ, 0, n, 0, 65536)).collect();
    let mut sent = 0;
    // It is taken in no further once its answers are not taken out.
    let start = std::time::Instant::now();
    let mut quiet = start;
    while quiet.elapsed().as_millis() < 200 {
        match flood.stream.write(&many) {
            Ok(len) => (sent, quiet) = (sent + len, std::time::Instant::now()),
            Err(_) => std::thread::yield_now(),
        }
        assert!(sent < 64 << 20, "{sent} bytes of requests are taken in");
    }
    let mut other = Client::agreed(&device, Way::Simple);
    assert_eq!(other.read(3, 1, 0), [3]);
    other.end().unwrap();
    assert!(flood.end().is_err());
}

#[test]
fn bytes_of_any_kind_end_in_a_result() {
    let device = disk();
    let exports = exports(&device);
    // What a client says in a good session.
    let option = |number: u32, data: &[u8]| {
        [&wire::IHAVEOPT.to_be_bytes()[..], &number.to_be_bytes(), &(data.len() as u32).to_be_bytes(), data].concat()
    };
    let mut session = 3_u32.to_be_bytes().to_vec();
    session.extend(option(option::LIST, &[]));
    session.extend(option(option::EXTENDED_HEADERS, &[]));
    session.extend(option(option::SET_META_CONTEXT, &contexts("first", &["base:allocation"])));
    session.extend(option(option::GO, &named("first", &[1, 2, 3])));
    for (kind, len, payload) in [
        (command::READ, 70_000, &b""[..]),
        (command::WRITE, 4, b"data"),
        (command::WRITE_ZEROES, 5000, b""),
        (command::TRIM, 5000, b""),
        (command::BLOCK_STATUS, SIZE, b""),
        (command::FLUSH, 0, b""),
        (command::CACHE, 100, b""),
        (command::DISCONNECT, 0, b""),
    ] {
        session.extend(request(Way::Extended, kind, 0, 1, 0, len));
        session.extend(payload);
    }
    serve_one(&session[..], std::io::sink(), &exports).unwrap();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    for _ in 0..5000 {
        let mut bytes = session.clone();
        for _ in 0..=random(3) {
            let at = random(bytes.len());
            match random(4) {
                0 => bytes[at] ^= 1 << random(8),
                1 => bytes[at] = [0, 0xff, 0x7f, 0x80][random(4)],
                2 => bytes.truncate(at.max(1)),
                _ => drop(bytes.remove(at)),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let _ = serve_one(&bytes[..], std::io::sink(), &exports);
    }
}

#[test]
fn a_read_that_fails_in_the_middle_is_an_error_in_each_dialect() {
    // A file that becomes shorter while it is served.
    let file = tempfile::NamedTempFile::new().unwrap();
    file.as_file().write_all_at_start(&vec![1; SIZE as usize]);
    let device: Arc<dyn BlockDevice> = Arc::new(backing::FileBacking::open(file.path(), backing::Open::WRITE).unwrap());
    for way in WAYS {
        file.as_file().set_len(SIZE).unwrap();
        let mut client = Client::agreed(&device, way);
        file.as_file().set_len(8192).unwrap();
        assert_eq!(client.error_of(command::READ, 0, 4096, 65536, &[]), error::IO, "{way:?}");
        assert_eq!(client.read(0, 2, 0), [1, 1]);
        client.end().unwrap();
    }
}

/// Filling a file from its beginning.
trait WriteAllAtStart {
    fn write_all_at_start(&self, bytes: &[u8]);
}

impl WriteAllAtStart for std::fs::File {
    fn write_all_at_start(&self, bytes: &[u8]) {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, 0).unwrap();
    }
}

mod addresses {
    use crate::nbd::{Address, Ending, Server};
    use block::Kind;

    #[test]
    fn are_read_as_people_write_them() {
        let tcp = |text: &str| Ok(Address::Tcp(text.to_owned()));
        let unix = |text: &str| Ok(Address::Unix(text.into()));
        for (text, wanted) in [
            ("unix:nbd.sock", unix("nbd.sock")),
            ("./nbd.sock", unix("./nbd.sock")),
            ("/run/nbd.sock", unix("/run/nbd.sock")),
            ("10809", tcp("127.0.0.1:10809")),
            ("tcp:localhost:1", tcp("localhost:1")),
            ("[::1]:0", tcp("[::1]:0")),
            ("nbd.sock", Err(Kind::Invalid)),
            (":1", Err(Kind::Invalid)),
            ("127.0.0.1:99999", Err(Kind::Invalid)),
        ] {
            assert_eq!(Address::parse(text).map_err(|error| error.kind()), wanted, "{text}");
        }
    }

    #[test]
    fn beyond_loopback_only_by_name_and_a_dead_socket_is_replaced() {
        use std::os::unix::fs::PermissionsExt as _;
        let far = Address::Tcp("0.0.0.0:0".to_owned());
        assert_eq!(Server::bind(&far, None, false, vec![]).unwrap_err().kind(), Kind::NotPermitted);
        Server::bind(&far, None, true, vec![]).unwrap();
        let near = Server::bind(&Address::Tcp("[::1]:0".to_owned()), None, false, vec![]);
        if let Ok(near) = near {
            assert!(near.uri().unwrap().starts_with("nbd://[::1]:"));
        }
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a b%.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        let server = Server::bind(&Address::Unix(path.clone()), None, false, vec![]).unwrap();
        assert!(server.uri().unwrap().ends_with("/a%20b%25.sock"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        let second = Server::bind(&Address::Unix(path.clone()), None, false, vec![]);
        assert_eq!(second.unwrap_err().kind(), Kind::Exists);
        let (stop, to_stop) = rustix::pipe::pipe().unwrap();
        drop(to_stop);
        server.serve(&stop, Ending::Asked, &|error| panic!("{error:?}")).unwrap();
        assert!(!path.exists());
        // What is no socket stays.
        std::fs::write(&path, "mine").unwrap();
        assert!(Server::bind(&Address::Unix(path.clone()), None, false, vec![]).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    }
}
