//! `recvmsg(2)` with control messages other than descriptors: the time to live of a packet, its kernel's notes.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use libc::{c_int, c_void};

/// Room for the control messages that a socket here is asked to deliver.
const CONTROL_BYTES: usize = 256;

/// Room for control messages, aligned as the kernel writes them.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// A packet that was received into a buffer.
#[derive(Debug)]
pub struct Received {
    /// Bytes.
    pub len: usize,
    /// Whether it was longer than the buffer.
    pub cut: bool,
    control: Vec<u8>,
}

impl Received {
    /// The number in the first control message of a level and a type.
    pub fn control_number(&self, level: c_int, kind: c_int) -> Option<c_int> {
        self.control_bytes(level, kind)?.first_chunk().copied().map(c_int::from_ne_bytes)
    }

    /// The bytes of the first control message of a level and a type.
    pub fn control_bytes(&self, level: c_int, kind: c_int) -> Option<&[u8]> {
        const HEADER: usize = size_of::<libc::cmsghdr>();
        let mut rest = self.control.as_slice();
        loop {
            let len = usize::from_ne_bytes(rest.first_chunk().copied()?);
            let found_level = c_int::from_ne_bytes(rest.get(size_of::<usize>()..)?.first_chunk().copied()?);
            let found_kind = c_int::from_ne_bytes(rest.get(size_of::<usize>() + 4..)?.first_chunk().copied()?);
            let payload = rest.get(HEADER..len)?;
            if (found_level, found_kind) == (level, kind) {
                return Some(payload);
            }
            rest = rest.get(len.next_multiple_of(size_of::<usize>())..)?;
        }
    }
}

/// Receives one packet into `buffer`, with its control messages.
///
/// # Errors
/// Those of `recvmsg`.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, buffer, 0)
}

/// Receives one of a socket's errors: of the packet that caused it what is known, and the kernel's notes
/// (`IP_RECVERR`, `IPV6_RECVERR`). It never waits.
///
/// # Errors
/// Those of `recvmsg`: `WouldBlock` when there is none.
pub fn receive_error(socket: impl AsFd, buffer: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, buffer, libc::MSG_ERRQUEUE | libc::MSG_DONTWAIT)
}

fn receive_with(socket: impl AsFd, buffer: &mut [u8], flags: c_int) -> io::Result<Received> {
    let mut control = Control([0; CONTROL_BYTES]);
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast::<c_void>(), iov_len: buffer.len() };
    // SAFETY: a structure of integers and pointers, for which zeroes are valid.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut part;
    message.msg_iovlen = 1;
    message.msg_control = (&raw mut control.0).cast::<c_void>();
    message.msg_controllen = CONTROL_BYTES as _;
    // SAFETY: the message points to one part, the caller's buffer with its length, and to the control buffer with its
    // length; all live over the call.
    let got = unsafe { libc::recvmsg(socket.as_fd().as_raw_fd(), &raw mut message, flags) };
    let len = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
    let control = control.0.get(..message.msg_controllen as usize).unwrap_or_default().to_vec();
    Ok(Received { len: len.min(buffer.len()), cut: message.msg_flags & libc::MSG_TRUNC != 0, control })
}

/// Sets an option of a socket that is a number.
///
/// # Errors
/// Those of `setsockopt`.
pub fn set_number(socket: impl AsFd, level: c_int, option: c_int, value: c_int) -> io::Result<()> {
    let size = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the option's value is read from a number that lives over the call, with its size.
    let done = unsafe {
        libc::setsockopt(socket.as_fd().as_raw_fd(), level, option, (&raw const value).cast::<c_void>(), size)
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_comes_with_its_time_to_live_and_says_when_it_was_cut() {
        let here = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        set_number(&here, libc::IPPROTO_IP, libc::IP_RECVTTL, 1).unwrap();
        here.send_to(b"packet", here.local_addr().unwrap()).unwrap();
        let mut buffer = [0; 4];
        let received = receive(&here, &mut buffer).unwrap();
        assert_eq!((received.len, received.cut, &buffer), (4, true, b"pack"));
        assert_eq!(received.control_number(libc::IPPROTO_IP, libc::IP_TTL), Some(64));
        assert_eq!(received.control_number(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT), None);
    }

    #[test]
    fn what_was_refused_comes_back_as_an_error() {
        let here = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        set_number(&here, libc::IPPROTO_IP, libc::IP_RECVERR, 1).unwrap();
        let nobody = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        here.send_to(b"packet", nobody).unwrap();
        let mut buffer = [0; 16];
        let received = receive_error(&here, &mut buffer).unwrap();
        assert_eq!(&buffer[..received.len], b"packet");
        let note = received.control_bytes(libc::IPPROTO_IP, libc::IP_RECVERR).unwrap();
        // ECONNREFUSED; by ICMP; destination unreachable, port.
        assert_eq!((note[..4].to_vec(), &note[4..7]), (111u32.to_ne_bytes().to_vec(), &[2, 3, 3][..]));
        assert_eq!(receive_error(&here, &mut buffer).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
