//! Blocks and fragments: compressed by several threads, written in order.

use std::collections::HashMap;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use block::{BlockDevice, Result};
use flate2::{Compress, Compression, FlushCompress, Status};

use super::super::tree::Index;
use super::{BLOCK_BYTES, NONE};

/// How many blocks are compressed at one time, at most.
const BATCH: usize = 64;
const LEVEL: u32 = 6;
/// In the size of a block: it is not compressed.
const UNCOMPRESSED: u32 = 1 << 24;

/// Where the content of a file is.
#[derive(Debug, Clone)]
pub(super) struct Stored {
    /// Of its first block, bytes from the beginning.
    pub start: u64,
    /// Sizes of its blocks, as they are stored.
    pub sizes: Vec<u32>,
    /// Bytes of blocks that are not there.
    pub sparse: u64,
    /// Fragment and offset in it; [`NONE`] for none.
    pub fragment: (u32, u32),
}

impl Default for Stored {
    fn default() -> Self {
        Self { start: 0, sizes: Vec::new(), sparse: 0, fragment: (NONE, 0) }
    }
}

enum Job {
    /// The next block of a file.
    Block(Index),
    /// The next fragment.
    Fragment,
}

/// What was written, and what is to be.
pub(super) struct Blocks<'a> {
    device: &'a dyn BlockDevice,
    at: u64,
    batch: Vec<(Job, Vec<u8>)>,
    files: HashMap<Index, Stored>,
    /// Where each is, and its size as stored.
    fragments: Vec<(u64, u32)>,
    fragments_begun: u32,
    open: Vec<u8>,
}

impl<'a> Blocks<'a> {
    /// From byte `at` of the device on.
    pub fn new(device: &'a dyn BlockDevice, at: u64) -> Self {
        let (batch, open) = (Vec::new(), Vec::new());
        Self { device, at, batch, files: HashMap::new(), fragments: Vec::new(), fragments_begun: 0, open }
    }

    pub fn begin(&mut self, file: Index) {
        self.files.insert(file, Stored::default());
    }

    /// The next block of a file, of `len` bytes: empty where all of it is zero.
    pub fn block(&mut self, file: Index, data: Vec<u8>, len: u64) -> Result<()> {
        if data.iter().all(|byte| *byte == 0) {
            // In its turn: sizes are in order.
            self.batch.push((Job::Block(file), Vec::new()));
            if let Some(stored) = self.files.get_mut(&file) {
                stored.sparse += len;
            }
        } else {
            self.batch.push((Job::Block(file), data));
        }
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// A file that is smaller than a block.
    pub fn fragment(&mut self, file: Index, data: Vec<u8>) -> Result<()> {
        let mut stored = Stored::default();
        if !data.is_empty() {
            if self.open.len() + data.len() > BLOCK_BYTES as usize {
                self.close_fragment()?;
            }
            stored.fragment = (self.fragments_begun, self.open.len() as u32);
            self.open.extend_from_slice(&data);
        }
        self.files.insert(file, stored);
        Ok(())
    }

    fn close_fragment(&mut self) -> Result<()> {
        if self.open.is_empty() {
            return Ok(());
        }
        self.fragments_begun += 1;
        let data = std::mem::take(&mut self.open);
        self.batch.push((Job::Fragment, data));
        if self.batch.len() >= BATCH { self.flush() } else { Ok(()) }
    }

    /// Writes all that is left.
    pub fn finish(&mut self) -> Result<()> {
        self.close_fragment()?;
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let batch = std::mem::take(&mut self.batch);
        let packed = pack_all(&batch);
        for ((job, data), packed) in batch.iter().zip(packed) {
            let (bytes, size) = match &packed {
                Some(packed) => (packed, packed.len() as u32),
                None => (data, if data.is_empty() { 0 } else { data.len() as u32 | UNCOMPRESSED }),
            };
            self.device.write_at(bytes, self.at)?;
            match job {
                Job::Block(file) => {
                    let at = self.at;
                    let stored = self.files.entry(*file).or_default();
                    if stored.sizes.is_empty() {
                        stored.start = at;
                    }
                    stored.sizes.push(size);
                }
                Job::Fragment => self.fragments.push((self.at, size)),
            }
            self.at += bytes.len() as u64;
        }
        Ok(())
    }

    /// Where what was written ends.
    pub fn end(&self) -> u64 {
        self.at
    }

    pub fn fragments(&self) -> &[(u64, u32)] {
        &self.fragments
    }

    pub fn stored(&self, file: Index) -> Stored {
        self.files.get(&file).cloned().unwrap_or_default()
    }
}

/// Compresses each; `None` where it gets no smaller.
fn pack_all(batch: &[(Job, Vec<u8>)]) -> Vec<Option<Vec<u8>>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(batch.len());
    let next = AtomicUsize::new(0);
    let packed: Vec<OnceLock<Option<Vec<u8>>>> = batch.iter().map(|_| OnceLock::new()).collect();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(((_, data), cell)) = {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    batch.get(at).zip(packed.get(at))
                } {
                    let _ = cell.set(deflate(data));
                }
            });
        }
    });
    packed.into_iter().map(|cell| cell.into_inner().flatten()).collect()
}

/// A zlib stream (RFC 1950); `None` where it is not smaller.
pub(super) fn deflate(data: &[u8]) -> Option<Vec<u8>> {
    let mut packed = vec![0; data.len().saturating_sub(1)];
    let mut compress = Compress::new(Compression::new(LEVEL), true);
    let status = compress.compress(data, &mut packed, FlushCompress::Finish).ok()?;
    if status != Status::StreamEnd {
        return None;
    }
    packed.truncate(usize::try_from(compress.total_out()).ok()?);
    Some(packed)
}
