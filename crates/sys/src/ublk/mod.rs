//! The kernel's driver for block devices in user space, ublk_drv: commands by io_uring.
//!
//! ```text
//! /dev/ublk-control  control   a device is added, described, started, stopped, deleted
//! /dev/ublkcN        queue     its requests: a command waits in the kernel for each that may come (a tag)
//! /dev/ublkbN                  the disk
//! ```
//! Documented in Documentation/block/ublk.rst and linux/ublk_cmd.h. Integers have the byte order of the machine:
//!
//! ```text
//! command of control, 32 bytes      device, 64 bytes               parameters, 64 bytes
//!   0  u32  device                    0  u16  queues                 0  u32  len       64
//!   4  u16  queue, all ones: none     2  u16  depth                  4  u32  types     1 basic, 2 discard
//!   6  u16  len of the buffer         4  u16  state                  8  u32  attributes
//!   8  u64  addr of the buffer        8  u32  buffer, bytes         12  u8   logical block   ┐
//!  16  u64  data                     12  u32  number                13  u8   physical block  │ powers
//!  24  u16  len of a path, which     16  i32  process               14  u8   optimal         │ of two
//!           the buffer begins with   24  u64  flags                 15  u8   least           ┘
//!                                    32  u64  the server's own      16  u32  sectors of one request
//! command of a queue, 16 bytes       40  u32  user, u32  group      20  u32  chunk
//!   0  u16  queue                                                   24  u64  sectors
//!   2  u16  tag                     descriptor, 24 bytes            32  u64  boundary
//!   4  i32  result                    0  u32  operation, flags      40  u32  alignment of discards
//!   8  u64  addr of the buffer        4  u32  sectors               44  u32  granularity
//!                                     8  u64  first sector          48  u32  sectors of a discard, u32  of zeroes
//!                                    16  u64  addr                  56  u16  segments of a discard
//! ```

mod control;
mod queue;

pub use control::Control;
pub use queue::{Bell, Channel, Queue, Request};

/// Where the driver is told what to do.
pub const CONTROL: &str = "/dev/ublk-control";
/// A sector, whatever the blocks of the disk are.
pub const SECTOR_BYTES: u64 = 512;
/// Most requests of one queue.
const DEPTH_MAX: usize = 4096;

/// Flags of a device.
pub mod flag {
    /// The device belongs to the user that adds it.
    pub const UNPRIVILEGED: u64 = 1 << 5;
}

/// States of a device.
pub mod state {
    /// Nobody serves it.
    pub const DEAD: u16 = 0;
}

/// Attributes in [`Parameters`].
pub mod attribute {
    /// Writes are refused.
    pub const READ_ONLY: u32 = 1;
    /// What was written is safe after a flush only.
    pub const VOLATILE_CACHE: u32 = 1 << 2;
    /// Single writes may ask to be safe at once.
    pub const FUA: u32 = 1 << 3;
}

/// What a request asks for: the low byte of [`Descriptor::operation`], and flags above it.
pub mod operation {
    /// Sectors are read.
    pub const READ: u8 = 0;
    /// Sectors are written.
    pub const WRITE: u8 = 1;
    /// All that was written is to be safe.
    pub const FLUSH: u8 = 2;
    /// Sectors are given up.
    pub const DISCARD: u8 = 3;
    /// Sectors are zeroed.
    pub const WRITE_ZEROES: u8 = 5;
    /// Flag: what is written is to be safe when it is answered.
    pub const FUA: u32 = 1 << 13;
    /// Flag: sectors that are zeroed keep their room.
    pub const NO_UNMAP: u32 = 1 << 15;
}

/// A device, as it is asked for and as the driver has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Info {
    /// Queues.
    pub queues: u16,
    /// Requests of a queue.
    pub depth: u16,
    /// See [`state`].
    pub state: u16,
    /// Zero.
    pub padding: u16,
    /// Bytes of the buffer of a request: no read and no write is longer.
    pub buffer_bytes: u32,
    /// N of `/dev/ublkbN`; all ones asks for a free one.
    pub number: u32,
    /// The process that serves it; -1 for none.
    pub pid: i32,
    /// Zero.
    pub padding_2: u32,
    /// See [`flag`].
    pub flags: u64,
    /// The server's own; the driver keeps it and looks away.
    pub own: u64,
    /// Who added it.
    pub user: u32,
    /// And that one's group.
    pub group: u32,
    /// Zero.
    pub reserved: [u64; 2],
}

/// What the disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Parameters {
    /// Filled in.
    pub len: u32,
    /// Filled in.
    pub types: u32,
    /// See [`attribute`].
    pub attributes: u32,
    /// Logical block, power of two.
    pub logical_shift: u8,
    /// Physical block, power of two.
    pub physical_shift: u8,
    /// What requests are best a multiple of, power of two.
    pub optimal_shift: u8,
    /// The least that makes sense, power of two.
    pub least_shift: u8,
    /// Most sectors of one request.
    pub sectors_max: u32,
    /// Requests do not cross multiples of so many; 0: they may.
    pub chunk_sectors: u32,
    /// Sectors.
    pub sectors: u64,
    /// Zero.
    pub boundary: u64,
    /// Zero.
    pub alignment: u32,
    /// Discards are in units of so many bytes.
    pub granularity: u32,
    /// Most sectors of a discard.
    pub discard_sectors_max: u32,
    /// Most sectors that are zeroed.
    pub zeroes_sectors_max: u32,
    /// Most parts of a discard: one, or none at all.
    pub segments_max: u16,
    /// Zero.
    pub reserved: [u16; 3],
}

impl Parameters {
    /// With discards and zeroes of as many sectors, discards in units of so many bytes.
    #[must_use]
    pub fn with_discard(self, granularity: u32, sectors_max: u32) -> Self {
        let (discard_sectors_max, zeroes_sectors_max) = (sectors_max, sectors_max);
        Self { granularity, discard_sectors_max, zeroes_sectors_max, segments_max: 1, ..self }
    }

    fn filled(self) -> Self {
        let types = if self.segments_max > 0 { 3 } else { 1 };
        Self { len: size_of::<Self>() as u32, types, ..self }
    }
}

/// A request, as the driver describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[repr(C)]
pub struct Descriptor {
    /// See [`operation`].
    pub operation: u32,
    /// How many sectors.
    pub sectors: u32,
    /// The first.
    pub start_sector: u64,
    /// Where the buffer is; this process knows.
    pub address: u64,
}

/// The commands of control (read, or read and write) and of queues, by number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
enum Command {
    GetInfo = 0x02,
    Add = 0x04,
    Delete = 0x05,
    Start = 0x06,
    Stop = 0x07,
    SetParameters = 0x08,
    GetInfoOfPath = 0x12,
    GetFeatures = 0x13,
    DeleteLater = 0x14,
    Fetch = 0x20,
    CommitAndFetch = 0x21,
}

impl Command {
    /// As the driver takes it: encoded like an ioctl, or, before Linux 6.4, the bare number.
    fn code(self, encoded: bool) -> u32 {
        let number = self as u32;
        let (directions, len): (u32, usize) = match self {
            _ if !encoded => return number,
            Self::Fetch | Self::CommitAndFetch => (3, size_of::<queue::Argument>()),
            Self::GetInfo | Self::GetInfoOfPath | Self::GetFeatures | Self::DeleteLater => {
                (2, size_of::<control::Argument>())
            }
            _ => (3, size_of::<control::Argument>()),
        };
        directions << 30 | (len as u32) << 16 | u32::from(b'u') << 8 | number
    }
}

const _: () = assert!(size_of::<Info>() == 64 && size_of::<Parameters>() == 64 && size_of::<Descriptor>() == 24);

/// Structures without padding, of which every bit pattern is valid.
///
/// # Safety
/// The type is `repr(C)`, has integers alone and no padding between or behind them.
unsafe trait Plain: Copy {
    fn bytes(&self) -> &[u8] {
        // SAFETY: as the trait demands, all bytes are initialised; they live as long as the borrow.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and any bytes make a valid value.
        unsafe { std::slice::from_raw_parts_mut(std::ptr::from_mut(self).cast(), size_of::<Self>()) }
    }
}

// SAFETY: 5 fields of 2, 4 and 8 bytes that fill 64, as asserted and drawn above.
unsafe impl Plain for Info {}
// SAFETY: fields that fill 64 bytes, as asserted and drawn above.
unsafe impl Plain for Parameters {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_driver_reads_them() {
        use std::mem::offset_of;
        assert_eq!((offset_of!(Info, number), offset_of!(Info, flags), offset_of!(Info, own)), (12, 24, 32));
        assert_eq!((offset_of!(Info, user), offset_of!(Info, reserved)), (40, 48));
        assert_eq!((offset_of!(Parameters, attributes), offset_of!(Parameters, sectors_max)), (8, 16));
        assert_eq!((offset_of!(Parameters, sectors), offset_of!(Parameters, alignment)), (24, 40));
        assert_eq!((offset_of!(Parameters, segments_max), offset_of!(Parameters, reserved)), (56, 58));
        let sum: usize = [2_usize, 2, 2, 2, 4, 4, 4, 4, 8, 8, 4, 4, 16].iter().sum();
        assert_eq!(sum, size_of::<Info>());
        let sum: usize = [4_usize, 4, 4, 1, 1, 1, 1, 4, 4, 8, 8, 4, 4, 4, 4, 2, 6].iter().sum();
        assert_eq!(sum, size_of::<Parameters>());
        assert_eq!(size_of::<control::Argument>(), 32);
        assert_eq!(size_of::<queue::Argument>(), 16);
    }

    #[test]
    fn commands_are_those_of_the_header() {
        // _IOR('u', 0x13, 32 bytes), _IOWR('u', 4, 32 bytes), _IOWR('u', 0x20, 16 bytes).
        assert_eq!(Command::GetFeatures.code(true), 0x8020_7513);
        assert_eq!(Command::Add.code(true), 0xC020_7504);
        assert_eq!(Command::Fetch.code(true), 0xC010_7520);
        assert_eq!(Command::DeleteLater.code(true), 0x8020_7514);
        assert_eq!(Command::Start.code(false), 6);
    }

    #[test]
    fn parameters_say_what_is_in_them() {
        let plain = Parameters { sectors: 9, ..Parameters::default() }.filled();
        assert_eq!((plain.len, plain.types), (64, 1));
        let discards = plain.with_discard(4096, 8).filled();
        assert_eq!((discards.types, discards.granularity, discards.segments_max), (3, 4096, 1));
        assert_eq!(discards.bytes()[44..48], 4096_u32.to_ne_bytes());
    }

    #[test]
    fn a_machine_without_the_driver_says_so() {
        if !std::path::Path::new(CONTROL).exists() {
            assert_eq!(Control::open().unwrap_err().kind(), std::io::ErrorKind::NotFound);
        }
        assert_eq!(Channel::open(u32::MAX).unwrap_err().kind(), std::io::ErrorKind::NotFound);
    }
}
