use std::sync::Arc;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use zerocopy::{FromBytes, IntoBytes};

use super::super::directory::{Directory, Ownership};
use super::super::request::tests::message;
use super::super::wire::{self, ROOT, ReadIn, WriteIn, opcode};
use super::*;

/// A session whose kernel is the test: messages keep their borders, as with /dev/fuse.
struct Kernel {
    socket: Option<OwnedFd>,
    thread: Option<std::thread::JoinHandle<Result<()>>>,
}

impl Kernel {
    fn new() -> Self {
        let (socket, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        let mut files = fs::testing::memory::Memory::new();
        let root = fs::FileSystem::root(&files);
        files.file(root, b"file", b"some bytes");
        let nodes = Directory::new(Arc::new(files), Ownership::default(), false);
        let session = Session::new(theirs, Box::new(nodes));
        let thread = std::thread::spawn(move || session.serve(|| {}));
        Self { socket: Some(socket), thread: Some(thread) }
    }

    fn agreed() -> Self {
        let kernel = Self::new();
        let (header, body) = kernel.ask(&init(7, 31, u32::MAX));
        assert_eq!((header.error, body.len()), (0, size_of::<InitOut>()));
        kernel
    }

    fn send(&self, bytes: &[u8]) {
        rustix::io::write(self.socket.as_ref().unwrap(), bytes).unwrap();
    }

    fn answer(&self) -> (OutHeader, Vec<u8>) {
        let mut bytes = vec![0; 1 << 17];
        let len = rustix::io::read(self.socket.as_ref().unwrap(), &mut bytes[..]).unwrap();
        let (header, body) = OutHeader::read_from_prefix(&bytes[..len]).unwrap();
        assert_eq!(header.len as usize, len);
        (header, body.to_vec())
    }

    fn ask(&self, bytes: &[u8]) -> (OutHeader, Vec<u8>) {
        self.send(bytes);
        self.answer()
    }

    fn end(mut self) -> Result<()> {
        drop(self.socket.take());
        self.thread.take().unwrap().join().unwrap()
    }
}

fn init(major: u32, minor: u32, flags: u32) -> Vec<u8> {
    message(opcode::INIT, 1, 0, &[InitIn { major, minor, max_readahead: 1 << 17, flags }.as_bytes(), &[0xFF; 48]])
}

#[test]
fn versions_are_agreed_on() {
    let kernel = Kernel::new();
    // A newer major version: the kernel is told ours, and asks again.
    let (_, body) = kernel.ask(&init(8, 1, 0));
    assert_eq!(InitOut::read_from_bytes(&body).unwrap().major, 7);
    let (header, body) = kernel.ask(&init(7, 99, u32::MAX));
    let out = InitOut::read_from_bytes(&body).unwrap();
    assert_eq!((header.error, out.major, out.minor), (0, 7, MINOR_MAX));
    assert_eq!((out.max_write, out.max_pages), (1 << 20, 256));
    assert_eq!(u64::from(out.flags) & wire::init::NO_OPEN_SUPPORT, wire::init::NO_OPEN_SUPPORT);
    kernel.end().unwrap();

    let kernel = Kernel::new();
    let (header, _) = kernel.ask(&init(7, 30, 0));
    assert_eq!(header.error, -71);
    assert_eq!(kernel.end().unwrap_err().kind(), Kind::Unsupported);

    // A kernel that offers nothing is asked for nothing.
    let kernel = Kernel::new();
    let out = InitOut::read_from_bytes(&kernel.ask(&init(7, 31, 0)).1).unwrap();
    assert_eq!((out.flags, out.flags2, out.max_write), (0, 0, 1 << 17));
    kernel.end().unwrap();
}

#[test]
fn requests_are_answered_and_some_are_not() {
    let kernel = Kernel::agreed();
    let (header, body) = kernel.ask(&message(opcode::LOOKUP, 10, ROOT, &[b"file\0"]));
    assert_eq!((header.unique, header.error), (10, 0));
    let node = wire::EntryOut::read_from_bytes(&body).unwrap().nodeid;
    let read = ReadIn { offset: 5, size: 4096, ..ReadIn::default() };
    assert_eq!(kernel.ask(&message(opcode::READ, 11, node, &[read.as_bytes()])).1, b"bytes");
    // A name that is not there is an answer too: the kernel remembers it.
    let (header, body) = kernel.ask(&message(opcode::LOOKUP, 12, ROOT, &[b"none\0"]));
    assert_eq!((header.error, wire::EntryOut::read_from_bytes(&body).unwrap().nodeid), (0, 0));
    assert_eq!(kernel.ask(&message(opcode::OPEN, 13, node, &[&[0; 8]])).0.error, -38);
    let write = WriteIn { size: 1, ..WriteIn::default() };
    assert_eq!(kernel.ask(&message(opcode::WRITE, 14, node, &[write.as_bytes(), b"x"])).0.error, -30);
    // These have no answer: the next one is that of what comes after.
    kernel.send(&message(opcode::FORGET, 15, node, &[&[1; 8]]));
    kernel.send(&message(opcode::BATCH_FORGET, 16, 0, &[&[0xFF; 8]]));
    kernel.send(&message(opcode::INTERRUPT, 17, 0, &[&[0; 8]]));
    assert_eq!(kernel.ask(&message(opcode::DESTROY, 18, 0, &[])).0.unique, 18);
    kernel.end().unwrap();
}

#[test]
fn hostile_messages_end_nothing() {
    let kernel = Kernel::agreed();
    // No headers: nobody to answer.
    kernel.send(b"x");
    kernel.send(&[0xFF; 40]);
    let mut long = message(opcode::GETATTR, 3, ROOT, &[&[0; 16]]);
    long.push(0);
    kernel.send(&long);
    // Each opcode, with arguments that are missing, zero, and as large as can be, for nodes that are there or not.
    let mut unique = 100;
    for code in (0..64).chain([4096, u32::MAX]) {
        let silent = matches!(code, opcode::FORGET | opcode::BATCH_FORGET | opcode::INTERRUPT);
        for node in [0, ROOT, 2, u64::MAX] {
            for arguments in [&[][..], &[0; 128], &[0xFF; 128], &[0xFF; 7], b"../../etc\0", b"no end"] {
                unique += 1;
                let sent = message(code, unique, node, &[arguments]);
                if silent {
                    kernel.send(&sent);
                    continue;
                }
                assert_eq!(kernel.ask(&sent).0.unique, unique, "opcode {code} node {node} {arguments:?}");
            }
        }
    }
    // It serves as before.
    let (header, body) = kernel.ask(&message(opcode::LOOKUP, 9, ROOT, &[b"file\0"]));
    assert_eq!((header.error, body.len()), (0, 128));
    kernel.end().unwrap();
}
