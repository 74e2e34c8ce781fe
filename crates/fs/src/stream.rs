//! Content on its way out, one byte after the other: to standard output, a pipe, an archive.

use std::os::fd::BorrowedFd;

use block::{Error, Kind, Result, Source};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use crate::ahead;
use crate::progress::Progress;
use crate::{FileSystem, Inode};

/// What is gathered before it is written, bytes.
const BUFFER_BYTES: usize = 256 << 10;
/// From this length on, the kernel moves bytes of a file by itself.
const SEND_BYTES_MIN: u64 = 64 << 10;
/// The most that one `sendfile` is asked for, bytes: so that progress is seen.
const SEND_BYTES_MAX: u64 = 8 << 20;
/// A source of zeroes.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Whose fault it is that content did not arrive: the image is one matter, a full disk or a closed pipe another.
#[derive(Debug)]
pub enum Failure {
    /// The content could not be read. What arrived before is sound.
    Image(Error),
    /// Nothing more can be written.
    Output(Error),
}

impl From<ahead::Unread> for Failure {
    fn from(unread: ahead::Unread) -> Self {
        Self::Image(unread.0)
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Image(error) | Failure::Output(error) => error,
        }
    }
}

/// An open file that is written from its current place on, through a buffer.
#[derive(Debug)]
pub struct Stream<'a> {
    fd: BorrowedFd<'a>,
    buffer: Vec<u8>,
    /// Whether `sendfile` works towards this file.
    sends: bool,
    written: u64,
}

impl<'a> Stream<'a> {
    /// A stream to `fd`.
    pub fn new(fd: BorrowedFd<'a>) -> Self {
        Self { fd, buffer: Vec::with_capacity(BUFFER_BYTES), sends: true, written: 0 }
    }

    /// How many bytes went in so far.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Adds bytes.
    ///
    /// # Errors
    /// The failure of the output; a closed pipe among them, as an `io::Error` in the chain of sources.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if bytes.len() > BUFFER_BYTES.saturating_sub(self.buffer.len()) {
            self.flush()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            write_all(self.fd, bytes)?;
        } else {
            self.buffer.extend_from_slice(bytes);
        }
        self.written = self.written.saturating_add(bytes.len() as u64);
        Ok(())
    }

    /// Adds zeroes.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn zeroes(&mut self, len: u64) -> Result<()> {
        let mut left = len;
        while left > 0 {
            let n = usize::try_from(left).unwrap_or(usize::MAX).min(ZEROES.len());
            self.write(ZEROES.get(..n).unwrap_or_default())?;
            left = left.saturating_sub(n as u64);
        }
        Ok(())
    }

    /// Writes what is still in the buffer.
    ///
    /// # Errors
    /// As [`Stream::write`].
    pub fn flush(&mut self) -> Result<()> {
        let outcome = write_all(self.fd, &self.buffer);
        self.buffer.clear();
        outcome
    }

    /// Lets the kernel move up to `len` bytes of `file` from `offset` on; says how many it moved, 0 where it cannot.
    fn send_file(&mut self, file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<u64> {
        if !self.sends {
            return Ok(0);
        }
        self.flush()?;
        let mut at = offset;
        loop {
            let count = usize::try_from(len.min(SEND_BYTES_MAX)).unwrap_or(usize::MAX);
            match rustix::fs::sendfile(self.fd, file, Some(&mut at), count) {
                Ok(sent) => {
                    self.written = self.written.saturating_add(sent as u64);
                    return Ok(sent as u64);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => wait(self.fd)?,
                Err(errno @ (Errno::PIPE | Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) => return Err(output(errno)),
                // Not between these two, or the file cannot be read: reading it will say.
                Err(errno) => {
                    self.sends = errno == Errno::IO;
                    return Ok(0);
                }
            }
        }
    }
}

fn output(errno: Errno) -> Error {
    Error::io("writing", errno)
}

fn wait(fd: BorrowedFd<'_>) -> Result<()> {
    match poll(&mut [PollFd::new(&fd, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(output(errno)),
    }
}

fn write_all(fd: BorrowedFd<'_>, bytes: &[u8]) -> Result<()> {
    let mut rest = bytes;
    while !rest.is_empty() {
        match rustix::io::write(fd, rest) {
            Ok(0) => return Err(Error::new(Kind::Io, "writing: nothing was taken")),
            Ok(n) => rest = rest.get(n..).unwrap_or_default(),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(fd)?,
            Err(errno) => return Err(output(errno)),
        }
    }
    Ok(())
}

/// Sends `len` bytes of a regular file from `from` on.
///
/// # Errors
/// [`Failure::Image`] when the image ends the content earlier or fails to read, [`Failure::Output`] when writing fails.
/// What was sent before is all that [`Stream::written`] counts.
pub fn send(
    fs: &dyn FileSystem,
    inode: Inode,
    from: u64,
    len: u64,
    stream: &mut Stream<'_>,
    progress: &dyn Progress,
) -> std::result::Result<(), Failure> {
    let mut at = from;
    let end = from.saturating_add(len);
    let mut buf = Vec::new();
    while at < end {
        let left = end.saturating_sub(at);
        let mut run = left;
        if left >= SEND_BYTES_MIN {
            let extent = fs.extent_at(inode, at).map_err(Failure::Image)?.ok_or_else(|| ended(at, end))?;
            run = extent.len.min(left);
            let sent = match extent.source {
                Source::Hole | Source::Zero => {
                    stream.zeroes(run).map_err(Failure::Output)?;
                    run
                }
                Source::File { fd, offset } if run >= SEND_BYTES_MIN => {
                    stream.send_file(fd, offset, run).map_err(Failure::Output)?
                }
                Source::Data if run >= ahead::BYTES_MIN => {
                    ahead::read(fs, inode, at, run, |chunk| {
                        stream.write(chunk).map_err(Failure::Output)?;
                        progress.copied(chunk.len() as u64);
                        Ok::<(), Failure>(())
                    })?;
                    at = at.saturating_add(run);
                    continue;
                }
                Source::File { .. } | Source::Data => 0,
            };
            if sent > 0 {
                progress.copied(sent);
                at = at.saturating_add(sent);
                continue;
            }
        }
        // Short runs are read together with what follows them.
        let want = usize::try_from(run.max(SEND_BYTES_MIN).min(left)).unwrap_or(usize::MAX).min(1 << 20);
        if buf.len() < want {
            buf.resize(want, 0);
        }
        let target = buf.get_mut(..want).unwrap_or_default();
        let read = fs.read(inode, target, at).map_err(Failure::Image)?;
        if read == 0 {
            return Err(ended(at, end));
        }
        stream.write(target.get(..read).unwrap_or_default()).map_err(Failure::Output)?;
        progress.copied(read as u64);
        at = at.saturating_add(read as u64);
    }
    Ok(())
}

fn ended(at: u64, end: u64) -> Failure {
    Failure::Image(Error::new(Kind::Corrupt, format!("the content ends after {at} bytes, {end} are claimed")))
}

#[cfg(test)]
#[allow(clippy::indexing_slicing, clippy::arithmetic_side_effects)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Seek, SeekFrom, Write};
    use std::os::fd::AsFd;
    use std::sync::Arc;

    use super::*;
    use crate::testing::memory::{Memory, Run, Stored};

    fn content(n: usize) -> Vec<u8> {
        (0..n).map(|i| (i * 7 % 251) as u8).collect()
    }

    /// A file of a long `File` run, a hole, zeroes and short runs; and its bytes.
    fn mixed() -> (Memory, Inode, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        let stored = content(3_000_000);
        file.write_all(&stored).unwrap();
        let file = Arc::new(file);
        let run = |start: u64, stored| Run { start, stored };
        let mut memory = Memory::new();
        let runs = vec![
            run(0, Stored::File { file: Arc::clone(&file), offset: 1000, len: 2_000_000 }),
            run(2_500_000, Stored::Bytes(content(10))),
            run(2_500_010, Stored::File { file, offset: 0, len: 100 }),
            run(2_500_110, Stored::Zero(300_000)),
        ];
        let inode = memory.sparse(memory.root(), b"f", 3_000_000, runs);
        let mut bytes = vec![0; 3_000_000];
        assert_eq!(memory.read(inode, &mut bytes, 0).unwrap(), bytes.len());
        assert_eq!(bytes[..2_000_000], stored[1000..2_001_000]);
        (memory, inode, bytes)
    }

    #[test]
    fn to_a_file_to_a_pipe_and_to_the_end_of_a_file() {
        let (memory, inode, bytes) = mixed();
        let mut out = tempfile::tempfile().unwrap();
        let mut stream = Stream::new(out.as_fd());
        stream.write(b"before").unwrap();
        send(&memory, inode, 0, 3_000_000, &mut stream, &()).unwrap();
        stream.flush().unwrap();
        assert_eq!(stream.written(), 3_000_006);
        let mut back = Vec::new();
        out.seek(SeekFrom::Start(0)).unwrap();
        out.read_to_end(&mut back).unwrap();
        assert!(back[..6] == *b"before" && back[6..] == bytes);

        let (reader, writer) = std::io::pipe().unwrap();
        rustix::io::ioctl_fionbio(&writer, true).unwrap();
        let reading = std::thread::spawn(move || {
            let (mut reader, mut back) = (reader, Vec::new());
            reader.read_to_end(&mut back).unwrap();
            back
        });
        let mut stream = Stream::new(writer.as_fd());
        send(&memory, inode, 5, 2_999_000, &mut stream, &()).unwrap();
        stream.flush().unwrap();
        drop(writer);
        assert!(reading.join().unwrap() == bytes[5..2_999_005]);

        let path = tempfile::NamedTempFile::new().unwrap();
        let append = File::options().append(true).open(path.path()).unwrap();
        let mut stream = Stream::new(append.as_fd());
        send(&memory, inode, 0, 3_000_000, &mut stream, &()).unwrap();
        stream.flush().unwrap();
        assert!(std::fs::read(path.path()).unwrap() == bytes);
    }

    /// A file that is read by several threads arrives in order, and up to where it is broken.
    #[test]
    fn what_is_long_and_has_to_be_read() {
        let bytes = content(9_123_456);
        let mut memory = Memory::new();
        let inode = memory.file(memory.root(), b"f", &bytes);
        let extent = memory.extent_at(inode, 7).unwrap().unwrap();
        assert!(matches!(extent.source, Source::Data) && extent.len >= ahead::BYTES_MIN, "{extent:?}");
        let sent = |memory: &Memory, len: u64| {
            let mut out = tempfile::tempfile().unwrap();
            let mut stream = Stream::new(out.as_fd());
            let outcome = send(memory, inode, 7, len, &mut stream, &());
            stream.flush().unwrap();
            let mut back = Vec::new();
            out.seek(SeekFrom::Start(0)).unwrap();
            out.read_to_end(&mut back).unwrap();
            (outcome, back)
        };
        let (outcome, back) = sent(&memory, 9_000_000);
        outcome.unwrap();
        assert!(back == bytes[7..9_000_007]);
        memory.node_mut(inode).broken_from = Some(6_000_000);
        let (outcome, back) = sent(&memory, 9_000_000);
        assert!(matches!(outcome, Err(Failure::Image(error)) if error.kind() == Kind::Io));
        assert!(back.len() >= 5 << 20 && back == bytes[7..7 + back.len()], "{}", back.len());
        // Nobody reads: the threads end, too.
        memory.node_mut(inode).broken_from = None;
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let failure = send(&memory, inode, 0, 9_000_000, &mut Stream::new(writer.as_fd()), &()).unwrap_err();
        assert!(matches!(failure, Failure::Output(_)));
    }

    #[test]
    fn a_closed_pipe_and_a_broken_image_are_told_apart() {
        let (memory, inode, _) = mixed();
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let failure = send(&memory, inode, 0, 3_000_000, &mut Stream::new(writer.as_fd()), &()).unwrap_err();
        let Failure::Output(error) = failure else { panic!("{failure:?}") };
        let io = error.find::<std::io::Error>().unwrap();
        assert_eq!(io.kind(), std::io::ErrorKind::BrokenPipe);

        let mut memory = Memory::new();
        let inode = memory.file(memory.root(), b"f", &content(200_000));
        memory.node_mut(inode).broken_from = Some(150_000);
        let out = tempfile::tempfile().unwrap();
        let failure = send(&memory, inode, 0, 200_000, &mut Stream::new(out.as_fd()), &()).unwrap_err();
        assert!(matches!(failure, Failure::Image(error) if error.kind() == Kind::Io));
        // More claimed than there is.
        memory.node_mut(inode).broken_from = None;
        let failure = send(&memory, inode, 0, 300_000, &mut Stream::new(out.as_fd()), &()).unwrap_err();
        assert!(matches!(failure, Failure::Image(error) if error.kind() == Kind::Corrupt));
    }
}
