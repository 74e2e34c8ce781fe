//! The commands of `/dev/ublk-control`.

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::{Duration, Instant};

use io_uring::squeue::Entry128;
use io_uring::{IoUring, opcode, types};
use rustix::fs::{Mode, OFlags};

use super::{CONTROL, Command, Info, Parameters, Plain, flag};

/// How long the kernel may take to fail what nobody answers any more, and to take a disk away.
const DELETE_TIME_MAX: Duration = Duration::from_secs(30);

/// A command, as it lies in the ring.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(super) struct Argument {
    number: u32,
    queue: u16,
    len: u16,
    address: u64,
    data: u64,
    path_len: u16,
    padding: [u16; 3],
}

// SAFETY: fields of 2, 4 and 8 bytes that fill 32, in an order that needs no padding.
unsafe impl Plain for Argument {}

/// The driver. Each command is waited for.
pub struct Control {
    node: OwnedFd,
    ring: IoUring<Entry128>,
    encoded: bool,
    features: u64,
    /// Commands so far.
    sequence: u64,
}

impl std::fmt::Debug for Control {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Control(features {:#x})", self.features)
    }
}

impl Control {
    /// Opens the driver.
    ///
    /// # Errors
    /// `ENOENT` and `ENODEV` where the kernel has none; `EACCES` for who may not; those of `io_uring_setup`.
    pub fn open() -> io::Result<Self> {
        let node = rustix::fs::open(CONTROL, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
        let ring = IoUring::builder().build(4)?;
        let mut control = Self { node, ring, encoded: true, features: 0, sequence: 0 };
        let mut features = [0; 8];
        match control.command(Command::GetFeatures, u32::MAX, 0, None, &mut features, None) {
            Ok(()) => control.features = u64::from_ne_bytes(features),
            // Before Linux 6.5; the bare numbers are understood there.
            Err(_) => control.encoded = false,
        }
        Ok(control)
    }

    /// What the driver can do, bit by bit as in [`Info::flags`]; 0 where it is too old to say.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// Whether commands are encoded like ioctls, those of queues too.
    pub fn is_encoded(&self) -> bool {
        self.encoded
    }

    /// Adds a device; what the driver made of the wish comes back.
    ///
    /// # Errors
    /// `EPERM` without CAP_SYS_ADMIN, unless it is to be [`flag::UNPRIVILEGED`]; `ENOSPC`, `EUSERS` for too many.
    pub fn add(&mut self, wanted: &Info) -> io::Result<Info> {
        let mut info = *wanted;
        self.command(Command::Add, wanted.number, 0, None, info.bytes_mut(), None)?;
        Ok(info)
    }

    /// Describes the disk of a device that is not started yet.
    ///
    /// # Errors
    /// `EINVAL` for what no disk can be; `EACCES` once it is started.
    pub fn set_parameters(&mut self, device: &Info, parameters: &Parameters) -> io::Result<()> {
        let mut parameters = parameters.filled();
        self.command(Command::SetParameters, device.number, 0, Some(device.flags), parameters.bytes_mut(), None)
    }

    /// Starts a device: returns when its disk is there, for which all its queues must be served already.
    ///
    /// # Errors
    /// [`io::ErrorKind::TimedOut`]; those of the driver.
    pub fn start(&mut self, device: &Info, patience: Duration) -> io::Result<()> {
        let pid = u64::from(std::process::id());
        self.command(Command::Start, device.number, pid, Some(device.flags), &mut [], Some(patience))
    }

    /// Stops a device: what the kernel still has to write is written, the disk goes away, and all that waits in its
    /// queues comes back. Its queues must be served meanwhile.
    ///
    /// # Errors
    /// `ENODEV` where there is none.
    pub fn stop(&mut self, device: &Info) -> io::Result<()> {
        self.command(Command::Stop, device.number, 0, Some(device.flags), &mut [], None)
    }

    /// Deletes a device, and waits for a while until its number is free, which it is when its last user is gone: whether
    /// that is so.
    ///
    /// # Errors
    /// `ENODEV` where there is none.
    pub fn delete(&mut self, device: &Info, patience: Duration) -> io::Result<bool> {
        let mut delete =
            |command, patience| self.command(command, device.number, 0, Some(device.flags), &mut [], Some(patience));
        let gone = |error: &io::Error| error.raw_os_error() == Some(libc::ENODEV);
        // Without waiting; from Linux 6.9 on. What waits then can be interrupted.
        let later = match delete(Command::DeleteLater, DELETE_TIME_MAX) {
            Err(error) if gone(&error) => return Err(error),
            other => other.is_ok(),
        };
        match delete(Command::Delete, patience) {
            Err(error) if later && gone(&error) => Ok(true),
            // It was deleted first, and waited for then.
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// What the driver has under a number.
    ///
    /// # Errors
    /// `ENODEV` where there is none; `EPERM`, `EACCES` for another user's.
    pub fn info(&mut self, number: u32) -> io::Result<Info> {
        let mut info = Info::default();
        let by_path = Some(flag::UNPRIVILEGED);
        match self.command(Command::GetInfoOfPath, number, 0, by_path, info.bytes_mut(), None) {
            Ok(()) => Ok(info),
            Err(_) => self.command(Command::GetInfo, number, 0, None, info.bytes_mut(), None).map(|()| info),
        }
    }

    /// One command, from its beginning to its end. The flags of a device say whether its path is to be told.
    fn command(
        &mut self,
        command: Command,
        number: u32,
        data: u64,
        flags: Option<u64>,
        payload: &mut [u8],
        patience: Option<Duration>,
    ) -> io::Result<()> {
        let by_path = flags.is_some_and(|flags| flags & flag::UNPRIVILEGED != 0);
        let path = if by_path { format!("/dev/ublkc{number}\0") } else { String::new() };
        let mut memory: Box<[u8]> = [path.as_bytes(), payload].concat().into();
        let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let argument = Argument {
            number,
            queue: u16::MAX,
            len: u16::try_from(memory.len()).map_err(too_long)?,
            address: if memory.is_empty() { 0 } else { memory.as_mut_ptr() as u64 },
            data,
            path_len: u16::try_from(path.len()).map_err(too_long)?,
            padding: [0; 3],
        };
        let mut bytes = [0; 80];
        bytes.iter_mut().zip(argument.bytes()).for_each(|(to, from)| *to = *from);
        self.sequence += 1;
        let entry = opcode::UringCmd80::new(types::Fd(self.node.as_raw_fd()), command.code(self.encoded))
            .cmd(bytes)
            .build()
            .user_data(self.sequence);
        // SAFETY: the command names `memory`, which is given back only after the kernel is done with it (below), and
        // the node, which lives as long as the ring.
        unsafe { self.ring.submission().push(&entry) }.map_err(io::Error::other)?;
        let until = patience.map(|patience| Instant::now() + patience);
        let result = self.wait(self.sequence, until);
        match result {
            Ok(result) if result >= 0 => {
                payload.copy_from_slice(memory.get(path.len()..).unwrap_or_default());
                Ok(())
            }
            Ok(errno) => Err(io::Error::from_raw_os_error(-errno)),
            Err(error) => {
                // The kernel may still read and write it.
                std::mem::forget(memory);
                Err(error)
            }
        }
    }

    /// Waits for the answer to a command; others are of commands that nobody waits for any more.
    fn wait(&mut self, sequence: u64, until: Option<Instant>) -> io::Result<i32> {
        loop {
            if let Some(answer) = self.ring.completion().find(|answer| answer.user_data() == sequence) {
                return Ok(answer.result());
            }
            let waited = match until {
                None => self.ring.submit_and_wait(1),
                Some(until) => {
                    let left = types::Timespec::from(until.saturating_duration_since(Instant::now()));
                    self.ring.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&left))
                }
            };
            match waited.map_err(|error| error.raw_os_error().ok_or(error)) {
                Ok(_) | Err(Ok(libc::EINTR)) => {}
                Err(Ok(libc::ETIME)) if until.is_none_or(|until| Instant::now() < until) => {}
                Err(Ok(libc::ETIME)) => return Err(io::ErrorKind::TimedOut.into()),
                Err(Ok(errno)) => return Err(io::Error::from_raw_os_error(errno)),
                Err(Err(error)) => return Err(error),
            }
        }
    }
}
