//! Compressed clusters.

use std::io::Read as _;

use flate2::{Compress, Decompress, FlushCompress, FlushDecompress, Status};

use super::Corrupt;
use super::header::Compression;

/// Unpacks a cluster of `cluster_bytes`; what stands behind the stream in `packed` is not looked at.
pub(super) fn unpack(compression: Compression, packed: &[u8], cluster_bytes: usize) -> Result<Vec<u8>, Corrupt> {
    let mut cluster = vec![0; cluster_bytes];
    match compression {
        Compression::Deflate => {
            let mut inflate = Decompress::new(false);
            let mut filled = 0_usize;
            while filled < cluster_bytes {
                let rest = usize::try_from(inflate.total_in()).ok().and_then(|at| packed.get(at..));
                let (Some(rest), Some(room)) = (rest, cluster.get_mut(filled..)) else { return Err(Corrupt::Deflate) };
                let before = inflate.total_in();
                let status = inflate.decompress(rest, room, FlushDecompress::None).map_err(|_| Corrupt::Deflate)?;
                let now = usize::try_from(inflate.total_out()).map_err(|_| Corrupt::Deflate)?;
                let stuck = now == filled && inflate.total_in() == before;
                filled = now;
                if filled < cluster_bytes && (status == Status::StreamEnd || stuck) {
                    return Err(Corrupt::Deflate);
                }
            }
        }
        Compression::Zstd => {
            let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(|_| Corrupt::Zstd)?;
            decoder.read_exact(&mut cluster).map_err(|_| Corrupt::Zstd)?;
        }
    }
    Ok(cluster)
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
            let packed = ruzstd::encoding::compress_to_vec(cluster, ruzstd::encoding::CompressionLevel::Fastest);
            (packed.len() < cluster.len().saturating_sub(512)).then_some(packed)
        }
    }
}
