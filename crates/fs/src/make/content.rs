//! The content of a tree's files, piece by piece.

use block::{Error, Kind, Result, Source};

use super::tree::Node;
use crate::FileSystem;
use crate::progress::Progress;

/// Bytes that are read at one time.
pub(super) const PIECE_BYTES: usize = 1 << 20;

/// A run of a file that holds something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run {
    pub start: u64,
    pub end: u64,
}

/// The runs of a regular file that are no holes, in order.
///
/// # Errors
/// The failure of the source.
pub(super) fn runs(source: &dyn FileSystem, node: &Node) -> Result<Vec<Run>> {
    let mut runs: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < node.size {
        let Some(extent) = source.extent_at(node.source, at)? else { return Err(changed()) };
        let end = (at + extent.len).min(node.size);
        if !matches!(extent.source, Source::Hole | Source::Zero) {
            match runs.last_mut().filter(|last| last.end == at) {
                Some(last) => last.end = end,
                None => runs.push(Run { start: at, end }),
            }
        }
        at = end;
    }
    Ok(runs)
}

/// Shows `take` the content of a regular file that is no hole, in order, with its offset; as many bytes as the tree says.
///
/// # Errors
/// The failure of the source or of `take`; that the file ends before.
pub(super) fn each(
    source: &dyn FileSystem,
    node: &Node,
    progress: &dyn Progress,
    take: &mut dyn FnMut(&[u8], u64) -> Result<()>,
) -> Result<()> {
    let mut buf = vec![0; usize::try_from(node.size).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)];
    let mut done = 0;
    for run in runs(source, node)? {
        let mut at = run.start;
        while at < run.end {
            let len = (run.end - at).min(buf.len() as u64) as usize;
            let piece = buf.get_mut(..len).unwrap_or_default();
            read(source, node, piece, at)?;
            take(piece, at)?;
            at += len as u64;
            progress.copied(at - done);
            done = at;
        }
    }
    progress.copied(node.size - done);
    Ok(())
}

/// Fills `buf` with the content at `offset`.
///
/// # Errors
/// The failure of the source; that the file ends before.
pub(super) fn read(source: &dyn FileSystem, node: &Node, buf: &mut [u8], offset: u64) -> Result<()> {
    if source.read(node.source, buf, offset)? < buf.len() {
        return Err(changed());
    }
    Ok(())
}

fn changed() -> Error {
    Error::new(Kind::Io, "a file that became shorter while it was read")
}
