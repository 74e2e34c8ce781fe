//! Content read by several threads at once and handed on in order: for what is compressed, where reading is computing.
//!
//! ```text
//! thread 0    chunk 0, 2, 4 … ─► channel of 1 ─┐
//! thread 1    chunk 1, 3, 5 … ─► channel of 1 ─┴─► the caller takes them in turn
//! ```
//! At most three chunks a thread are in memory.

use std::sync::mpsc::sync_channel;

use block::{Error, Kind, Result};

use crate::{FileSystem, Inode};

/// Bytes of a chunk.
const CHUNK_BYTES: u64 = 1 << 20;
/// Shorter runs are not worth the threads, bytes.
pub(crate) const BYTES_MIN: u64 = 4 * CHUNK_BYTES;
/// The most threads.
const THREADS_MAX: usize = 4;

/// Passes the `len` bytes of a regular file from `from` on to `take`, piece by piece, until it fails.
///
/// # Errors
/// The failure of reading, as an [`Unread`], after all that stands before it was passed on; that of `take`.
pub(crate) fn read<E: From<Unread>>(
    fs: &dyn FileSystem,
    inode: Inode,
    from: u64,
    len: u64,
    mut take: impl FnMut(&[u8]) -> std::result::Result<(), E>,
) -> std::result::Result<(), E> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get).min(THREADS_MAX);
    let chunks = len.div_ceil(CHUNK_BYTES);
    std::thread::scope(|scope| {
        let mut results = Vec::new();
        for thread in 0..threads {
            let (sender, receiver) = sync_channel::<Result<Vec<u8>>>(1);
            let (give_back, spare) = sync_channel::<Vec<u8>>(3);
            results.push((receiver, give_back));
            scope.spawn(move || {
                for number in (thread as u64..chunks).step_by(threads) {
                    let start = number.saturating_mul(CHUNK_BYTES);
                    let want = usize::try_from(len.saturating_sub(start).min(CHUNK_BYTES)).unwrap_or(0);
                    let mut chunk = spare.try_recv().unwrap_or_default();
                    chunk.resize(want, 0);
                    let outcome = fs.read(inode, &mut chunk, from.saturating_add(start)).map(|read| {
                        chunk.truncate(read);
                        chunk
                    });
                    let last = outcome.as_ref().map_or(true, |chunk| chunk.len() < want);
                    // Nobody takes it any more, or there is no more.
                    if sender.send(outcome).is_err() || last {
                        return;
                    }
                }
            });
        }
        for number in 0..chunks {
            let turn = usize::try_from(number).unwrap_or(0).checked_rem(threads).unwrap_or(0);
            let received = results.get(turn).map(|(receiver, give_back)| (receiver.recv(), give_back));
            let Some((Ok(outcome), give_back)) = received else {
                return Err(Unread(Error::new(Kind::Io, "thread that reads ahead")).into());
            };
            let chunk = outcome.map_err(Unread)?;
            let start = number.saturating_mul(CHUNK_BYTES);
            if (chunk.len() as u64) < len.saturating_sub(start).min(CHUNK_BYTES) {
                let what = format!(
                    "the content ends after {} bytes",
                    from.saturating_add(start).saturating_add(chunk.len() as u64)
                );
                take(&chunk)?;
                return Err(Unread(Error::new(Kind::Corrupt, what)).into());
            }
            take(&chunk)?;
            let _ = give_back.try_send(chunk);
        }
        Ok(())
    })
}

/// That content could not be read.
#[derive(Debug)]
pub(crate) struct Unread(pub Error);
