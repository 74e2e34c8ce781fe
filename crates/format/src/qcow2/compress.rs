//! Compressed clusters.

use std::io::Read as _;
use std::sync::{Mutex, PoisonError};

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};
use zrip_decode::streaming::FrameDecoder;

use super::Corrupt;
use super::header::Compression;

/// Decoders that are kept.
const DECODERS_MAX: usize = 8;
/// As much as QEMU's zstd.
const ZSTD_LEVEL: i32 = 3;

/// Decoders at rest: making one takes as long as unpacking some KiB.
#[derive(Default)]
pub(super) struct Decoders(Mutex<Vec<Decompress>>);

impl Decoders {
    /// Unpacks a cluster of `cluster_bytes`; what stands behind the stream in `packed` is not looked at.
    pub(super) fn unpack(&self, how: Compression, packed: &[u8], cluster_bytes: usize) -> Result<Vec<u8>, Corrupt> {
        let mut cluster = vec![0; cluster_bytes];
        match how {
            Compression::Deflate => {
                let kept = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
                let rested = kept().pop();
                let mut decoder = rested.unwrap_or_else(|| Decompress::new(false));
                let done = inflate(&mut decoder, packed, &mut cluster);
                decoder.reset(false);
                let mut kept = kept();
                if kept.len() < DECODERS_MAX {
                    kept.push(decoder);
                }
                done?;
            }
            Compression::Zstd => {
                // A cluster, and a block of zstd that goes over its end.
                let most = cluster_bytes.saturating_add(128 << 10);
                FrameDecoder::with_limit(packed, most).read_exact(&mut cluster).map_err(|_| Corrupt::Zstd)?;
            }
        }
        Ok(cluster)
    }
}

fn inflate(decoder: &mut Decompress, packed: &[u8], cluster: &mut [u8]) -> Result<(), Corrupt> {
    let mut filled = 0_usize;
    while filled < cluster.len() {
        let rest = usize::try_from(decoder.total_in()).ok().and_then(|at| packed.get(at..));
        let (Some(rest), Some(room)) = (rest, cluster.get_mut(filled..)) else { return Err(Corrupt::Deflate) };
        let before = decoder.total_in();
        let status = decoder.decompress(rest, room, FlushDecompress::None).map_err(|_| Corrupt::Deflate)?;
        let now = usize::try_from(decoder.total_out()).map_err(|_| Corrupt::Deflate)?;
        let stuck = now == filled && decoder.total_in() == before;
        filled = now;
        if filled < cluster.len() && (status == Status::StreamEnd || stuck) {
            return Err(Corrupt::Deflate);
        }
    }
    Ok(())
}

/// Packs a cluster; `None` where it does not get smaller.
pub(crate) fn pack(compression: Compression, cluster: &[u8]) -> Option<Vec<u8>> {
    match compression {
        Compression::Deflate => {
            let mut packed = vec![0; cluster.len().saturating_sub(512)];
            // A window of 4096 bytes is what the format asks for.
            let mut deflate = Compress::new_with_window_bits(flate2::Compression::new(6), false, 12);
            let status = deflate.compress(cluster, &mut packed, FlushCompress::Finish).ok()?;
            if status != Status::StreamEnd {
                return None;
            }
            packed.truncate(usize::try_from(deflate.total_out()).ok()?);
            Some(packed)
        }
        Compression::Zstd => {
            let packed = zrip_encode::compress(cluster, ZSTD_LEVEL).ok()?;
            (packed.len() < cluster.len().saturating_sub(512)).then_some(packed)
        }
    }
}
