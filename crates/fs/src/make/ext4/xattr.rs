//! Extended attributes: a block for each set of them, shared by the files that have the same.
//!
//! ```text
//! magic, 4 │ references, 4 │ blocks, 4 │ hash, 4 │ checksum, 4 │ 0, 12
//! name bytes, 1 │ prefix, 1 │ value offset, 2 │ 0, 4 │ value bytes, 4 │ hash, 4 │ name     … │ 0, 4 │ … values
//! ```

use std::collections::HashMap;

use super::bytes::Fields;
use super::{BLOCK_BYTES, Node};
use crate::ext4::checksum::crc32c;

const MAGIC: u32 = 0xea02_0000;
const HEADER_BYTES: usize = 32;
const ENTRY_BYTES: usize = 16;
const PREFIXES: [(u8, &[u8]); 6] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
    (7, b"system."),
];
/// The kernel gives a block to so many files.
const REFERENCES_MAX: u32 = 1024;
const ACL_USER: u16 = 0x02;
const ACL_GROUP: u16 = 0x08;

/// An attribute as it is stored: prefix, rest of the name, value.
type Stored = (u8, Vec<u8>, Vec<u8>);

struct Set {
    bytes: Vec<u8>,
    references: u32,
    block: Option<u64>,
}

/// All sets.
#[derive(Default)]
pub(super) struct Blocks {
    sets: Vec<Set>,
    known: HashMap<Vec<u8>, usize>,
}

/// An access control list as the disk has it: version 1, and numbers only where they mean something; the kernel's version
/// is 2.
fn access_control_list(value: &[u8]) -> Option<Vec<u8>> {
    let entries = value.strip_prefix(&2_u32.to_le_bytes())?;
    let mut stored = 1_u32.to_le_bytes().to_vec();
    for entry in entries.chunks(8) {
        let tag = block::bytes::le_u16(entry, 0)?;
        let with_number = matches!(tag, ACL_USER | ACL_GROUP);
        stored.extend_from_slice(entry.get(..if with_number { 8 } else { 4 })?);
    }
    Some(stored)
}

fn stored(name: &[u8], value: &[u8]) -> Option<Stored> {
    let (number, prefix) = PREFIXES.into_iter().find(|(_, prefix)| name.starts_with(prefix))?;
    let rest = name.strip_prefix(prefix)?.to_vec();
    let is_list = matches!(number, 2 | 3);
    if rest.is_empty() != is_list {
        return None;
    }
    Some((number, rest, if is_list { access_control_list(value)? } else { value.to_vec() }))
}

impl Blocks {
    /// The set of a file, and the names of what does not fit.
    pub fn of<'a>(&mut self, node: &'a Node) -> (Option<usize>, Vec<&'a [u8]>) {
        let (mut fitting, mut left) = (Vec::new(), Vec::new());
        // Four bytes of zeroes end the entries.
        let mut room = BLOCK_BYTES as usize - HEADER_BYTES - 4;
        for (name, value) in &node.xattrs {
            let needed = stored(name, value).map(|(number, rest, value)| {
                let bytes = ENTRY_BYTES + rest.len().next_multiple_of(4) + value.len().next_multiple_of(4);
                (bytes, (number, rest, value))
            });
            match needed.filter(|(bytes, _)| *bytes <= room) {
                Some((bytes, stored)) => {
                    room -= bytes;
                    fitting.push(stored);
                }
                None => left.push(name.as_slice()),
            }
        }
        if fitting.is_empty() {
            return (None, left);
        }
        fitting.sort_by(|a, b| (a.0, a.1.len(), &a.1).cmp(&(b.0, b.1.len(), &b.1)));
        let bytes = block(&fitting);
        let shared = self.known.get(&bytes).copied();
        let open = shared.filter(|set| self.sets.get(*set).is_some_and(|set| set.references < REFERENCES_MAX));
        let set = open.unwrap_or_else(|| {
            self.known.insert(bytes.clone(), self.sets.len());
            self.sets.push(Set { bytes, references: 0, block: None });
            self.sets.len() - 1
        });
        self.sets.get_mut(set).into_iter().for_each(|set| set.references += 1);
        (Some(set), left)
    }

    pub fn block(&self, set: usize) -> Option<u64> {
        self.sets.get(set)?.block
    }

    pub fn place(&mut self, set: usize, block: u64) {
        self.sets.get_mut(set).into_iter().for_each(|set| set.block = Some(block));
    }

    /// All blocks, and where they go.
    pub fn bytes(&self, seed: u32) -> Vec<(u64, Vec<u8>)> {
        let all = self.sets.iter().filter_map(|set| {
            let number = set.block?;
            let mut block = Fields(set.bytes.clone());
            block.put32(4, set.references);
            let sum = crc32c(crc32c(seed, &number.to_le_bytes()), &block.0);
            block.put32(16, sum);
            Some((number, block.0))
        });
        all.collect()
    }
}

/// The hash of an attribute: of its name, and of its value's words.
fn hash(name: &[u8], value: &[u8]) -> u32 {
    let named = name.iter().fold(0_u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
    let words = value.chunks(4).map(|part| {
        let mut word = [0; 4];
        word.iter_mut().zip(part).for_each(|(to, byte)| *to = *byte);
        u32::from_le_bytes(word)
    });
    words.fold(named, |hash, word| hash.rotate_left(16) ^ word)
}

/// A block without references and checksum.
fn block(attributes: &[Stored]) -> Vec<u8> {
    let mut block = Fields::new(BLOCK_BYTES as usize);
    let (mut at, mut end) = (HEADER_BYTES, BLOCK_BYTES as usize);
    let mut all = 0_u32;
    for (number, name, value) in attributes {
        end -= value.len().next_multiple_of(4);
        let own = hash(name, value);
        all = all.rotate_left(16) ^ own;
        block.put(at, &[name.len() as u8, *number]);
        block.put16(at + 2, if value.is_empty() { 0 } else { end as u16 });
        block.put32(at + 8, value.len() as u32);
        block.put32(at + 12, own);
        block.put(at + ENTRY_BYTES, name);
        block.put(end, value);
        at += ENTRY_BYTES + name.len().next_multiple_of(4);
    }
    block.put32(0, MAGIC);
    block.put32(8, 1);
    block.put32(12, all);
    block.0
}
