//! The clusters that hold the image's own tables: nothing else may be put there, whatever the refcounts say.
//!
//! An image with wrong refcounts may count a table as free. The same that QEMU looks at by default
//! (`overlap-check=cached`): header, refcount table and blocks, L1, the L2 tables of the disk, the snapshot table and the
//! L1 tables of snapshots.

use block::Result;

use super::header::Header;
use super::table::{Geometry, Map};
use super::{Corrupt, Refcounts, Storage, snapshot};

/// Ranges of clusters, in order.
#[derive(Debug, Default)]
pub(super) struct Tables(Vec<(u64, u64)>);

impl Tables {
    /// Those of an image as it was opened: what is taken later is counted.
    pub(super) fn of(storage: &dyn Storage, header: &Header, map: &Map, counts: &Refcounts) -> Result<Self> {
        let geometry = Geometry::of(header);
        let cluster = geometry.cluster();
        let (table, table_bytes, blocks) = counts.parts();
        let mut bytes = vec![(0, cluster), (table, table_bytes)];
        bytes.extend(blocks.into_iter().map(|block| (block, cluster)));
        bytes.push((header.l1_offset, header.l1_entries.saturating_mul(8)));
        bytes.extend(map.offsets().map(|offset| (offset, cluster)));
        let (snapshots, snapshots_bytes) = snapshot::read_with_end(&storage, header)?;
        bytes.push((header.snapshots_offset, snapshots_bytes));
        bytes.extend(snapshots.iter().map(|one| (one.l1_offset, one.l1_entries.saturating_mul(8))));
        let mut ranges: Vec<(u64, u64)> = bytes
            .into_iter()
            .filter(|(_, len)| *len > 0)
            .map(|(at, len)| {
                let last = geometry.index(at.saturating_add(len.saturating_sub(1)));
                (geometry.index(at), last.saturating_add(1))
            })
            .collect();
        ranges.sort_unstable();
        ranges.dedup_by(|next, before| {
            let touches = next.0 <= before.1;
            if touches {
                before.1 = before.1.max(next.1);
            }
            touches
        });
        Ok(Self(ranges))
    }

    /// Whether a cluster is one of them.
    pub(super) fn contain(&self, cluster: u64) -> bool {
        let after = self.0.partition_point(|(first, _)| *first <= cluster);
        after.checked_sub(1).and_then(|n| self.0.get(n)).is_some_and(|(_, end)| cluster < *end)
    }

    /// # Errors
    /// [`Corrupt::Overlap`] where it is one of them.
    pub(super) fn refuse(&self, cluster: u64) -> Result<()> {
        if self.contain(cluster) { Err(Corrupt::Overlap(cluster).into()) } else { Ok(()) }
    }
}
