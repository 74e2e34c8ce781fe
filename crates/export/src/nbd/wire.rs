//! The numbers of the NBD protocol, and its fixed structures, big-endian all of them.
//!
//! Source: the protocol document of the Network Block Device project, `doc/proto.md`.

/// First word of a server.
pub const NBDMAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second word of a newstyle server, and first of every option.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// First word of the answer to an option.
pub const OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;
/// First word of a request.
pub const REQUEST: u32 = 0x2560_9513;
/// First word of a request with an extended header.
pub const REQUEST_EXTENDED: u32 = 0x21e4_1c71;
/// First word of a simple reply.
pub const REPLY_SIMPLE: u32 = 0x6744_6698;
/// First word of a chunk of a structured reply.
pub const REPLY_CHUNK: u32 = 0x668e_33ef;
/// First word of a chunk with an extended header.
pub const REPLY_CHUNK_EXTENDED: u32 = 0x6e8a_278c;

/// Handshake flag of the server: fixed newstyle.
pub const FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag, of both sides: no 124 zero bytes after an export that is asked for the old way.
pub const NO_ZEROES: u16 = 2;

/// Options that a client may haggle about.
pub mod option {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Answers to an option; errors have the highest bit set.
pub mod answer {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    pub const ERR_UNSUP: u32 = (1 << 31) + 1;
    pub const ERR_POLICY: u32 = (1 << 31) + 2;
    pub const ERR_INVALID: u32 = (1 << 31) + 3;
    pub const ERR_TLS_REQD: u32 = (1 << 31) + 5;
    pub const ERR_UNKNOWN: u32 = (1 << 31) + 6;
    pub const ERR_TOO_BIG: u32 = (1 << 31) + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = (1 << 31) + 10;
}

/// What an export is described by.
pub mod info {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do, told with its size.
pub mod transmission {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
}

/// Requests.
pub mod command {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISCONNECT: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request.
pub mod flag {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of chunks.
pub mod chunk {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const DONE: u16 = 1;
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    pub const ERROR: u16 = (1 << 15) + 1;
}

/// Errors that a client understands; the numbers are those of Linux.
pub mod error {
    #![allow(missing_docs, reason = "the names of the protocol")]
    pub const PERM: u32 = 1;
    pub const IO: u32 = 5;
    pub const INVAL: u32 = 22;
    pub const NOSPC: u32 = 28;
    pub const OVERFLOW: u32 = 75;
    pub const NOTSUP: u32 = 95;

    /// The protocol's error for one of ours. Some of its numbers are kept for certain requests.
    pub fn of(error: &block::Error, request: &super::Request) -> u32 {
        use super::{command, flag};
        match error.kind() {
            block::Kind::ReadOnly | block::Kind::Denied | block::Kind::NotPermitted => PERM,
            block::Kind::OutOfRange if matches!(request.command, command::WRITE | command::WRITE_ZEROES) => NOSPC,
            block::Kind::NoSpace => NOSPC,
            block::Kind::Unsupported if request.flags & flag::FAST_ZERO != 0 => NOTSUP,
            block::Kind::Limit if request.flags & flag::DF != 0 => OVERFLOW,
            block::Kind::Invalid | block::Kind::OutOfRange | block::Kind::Unsupported | block::Kind::Limit => INVAL,
            _ => IO,
        }
    }
}

/// The one context of block status that is served: holes and zeroes.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// State in that context: nothing is allocated.
pub const STATE_HOLE: u32 = 1;
/// State in that context: reads as zero.
pub const STATE_ZERO: u32 = 2;

/// Bytes of a request, and of one with an extended header.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a request with an extended header.
pub const REQUEST_EXTENDED_BYTES: usize = 32;

/// The first bytes of `bytes` as a number; `None` when there are not enough.
pub fn be_u16(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at.checked_add(2)?)?.try_into().ok()?))
}

/// The same with four bytes.
pub fn be_u32(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(bytes.get(at..at.checked_add(4)?)?.try_into().ok()?))
}

/// The same with eight bytes.
pub fn be_u64(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_be_bytes(bytes.get(at..at.checked_add(8)?)?.try_into().ok()?))
}

/// A request, whichever header it came with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Flags: [`flag`].
    pub flags: u16,
    /// What: [`command`].
    pub command: u16,
    /// The client's name for it.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes: of the payload for a write (or with [`flag::PAYLOAD_LEN`]), else of the effect.
    pub len: u64,
}

impl Request {
    /// Reads a header; `None` when the magic is wrong or bytes are missing.
    pub fn parse(bytes: &[u8], extended: bool) -> Option<Self> {
        let magic = if extended { REQUEST_EXTENDED } else { REQUEST };
        if be_u32(bytes, 0)? != magic {
            return None;
        }
        let len = if extended { be_u64(bytes, 24)? } else { u64::from(be_u32(bytes, 24)?) };
        Some(Self {
            flags: be_u16(bytes, 4)?,
            command: be_u16(bytes, 6)?,
            cookie: be_u64(bytes, 8)?,
            offset: be_u64(bytes, 16)?,
            len,
        })
    }

    /// Bytes that follow the header.
    pub fn payload_bytes(&self, extended: bool) -> u64 {
        let carries = self.command == command::WRITE || (extended && self.flags & flag::PAYLOAD_LEN != 0);
        if carries { self.len } else { 0 }
    }
}
