//! Extended attributes: each set of them once.

use std::collections::HashMap;

use block::Result;

use super::super::tree::Node;
use super::metadata::{Metadata, Place};
use super::{NONE, Output};

/// By their number in the type of a pair.
const PREFIXES: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];

/// All sets.
#[derive(Default)]
pub(super) struct Xattrs {
    pairs: Metadata,
    /// Place, number of pairs, bytes.
    sets: Vec<(Place, u32, u32)>,
    known: HashMap<Vec<u8>, u32>,
}

impl Xattrs {
    pub fn is_empty(&self) -> bool {
        self.sets.is_empty()
    }

    /// The number of a file's set, [`NONE`] where it has none; and the names of those that squashfs has no prefix for.
    pub fn number<'a>(&mut self, node: &'a Node) -> (u32, Vec<&'a [u8]>) {
        let (mut bytes, mut count, mut left) = (Vec::new(), 0, Vec::new());
        for (name, value) in &node.xattrs {
            let prefix = (0_u16..).zip(PREFIXES).find_map(|(kind, prefix)| Some((kind, name.strip_prefix(prefix)?)));
            let Some((kind, rest)) = prefix.filter(|(_, rest)| !rest.is_empty()) else {
                left.push(name.as_slice());
                continue;
            };
            bytes.extend_from_slice(&kind.to_le_bytes());
            bytes.extend_from_slice(&(rest.len() as u16).to_le_bytes());
            bytes.extend_from_slice(rest);
            bytes.extend_from_slice(&(value.len() as u32).to_le_bytes());
            bytes.extend_from_slice(value);
            count += 1;
        }
        if count == 0 {
            return (NONE, left);
        }
        if let Some(number) = self.known.get(&bytes) {
            return (*number, left);
        }
        let number = self.sets.len() as u32;
        self.sets.push((self.pairs.place(), count, bytes.len() as u32));
        self.pairs.write(&bytes);
        self.known.insert(bytes, number);
        (number, left)
    }

    /// Writes all, and says where the table is.
    pub fn write(self, out: &mut Output<'_>) -> Result<u64> {
        let count = self.sets.len() as u32;
        let pairs = out.write(&self.pairs.finish())?;
        let starts = out.blocks(self.sets.iter().flat_map(|(place, count, bytes)| {
            [&place.reference().to_le_bytes()[..], &count.to_le_bytes(), &bytes.to_le_bytes()].concat()
        }))?;
        let mut table = pairs.to_le_bytes().to_vec();
        table.extend_from_slice(&count.to_le_bytes());
        table.extend_from_slice(&[0; 4]);
        starts.iter().for_each(|start| table.extend_from_slice(&start.to_le_bytes()));
        out.write(&table)
    }
}
