//! System use (SUSP, IEEE P1281) with Rock Ridge (RRIP 1.12, IEEE P1282) and AAIP 2.0; drawn beside their readers.

use super::super::tree::{Index, Node, ROOT, Tree};
use super::{BLOCK_BYTES, both_32, date};
use crate::FileType;

/// The longest entry, bytes.
const ENTRY_MAX: usize = 255;
/// The longest record that the length, an even number in a byte, can say.
const RECORD_MAX: usize = 254;
/// Bytes of an entry that says where it goes on.
const CE_BYTES: usize = 28;
/// The most attributes of a file, bytes: what continues must fit the 32 pieces that the kernel follows.
const XATTRS_BYTES_MAX: usize = 40_000;
const GOES_ON: u8 = 1;

/// The entries of one record: those in it, and where they go on.
pub(super) struct SystemUse {
    inline: Vec<u8>,
    /// The first piece of what continues.
    next: Option<usize>,
}

/// What continues outside of directories, in pieces that lie in one block each.
#[derive(Default)]
pub(super) struct Continued {
    pieces: Vec<Piece>,
    used: u64,
}

struct Piece {
    at: u64,
    entries: Vec<u8>,
    next: Option<usize>,
}

impl Piece {
    fn len(&self) -> usize {
        self.entries.len() + if self.next.is_some() { CE_BYTES } else { 0 }
    }
}

impl Continued {
    pub fn blocks(&self) -> u64 {
        self.used.div_ceil(BLOCK_BYTES).max(1)
    }

    /// All pieces, as they stand from `block` on.
    pub fn bytes(&self, block: u32) -> Vec<u8> {
        let mut bytes = vec![0; (self.blocks() * BLOCK_BYTES) as usize];
        for piece in &self.pieces {
            let mut whole = piece.entries.clone();
            whole.extend(piece.next.into_iter().flat_map(|next| self.pointer(next, block)));
            bytes.iter_mut().skip(piece.at as usize).zip(whole).for_each(|(to, byte)| *to = byte);
        }
        bytes
    }

    /// The entry that says where a piece is.
    fn pointer(&self, piece: usize, block: u32) -> Vec<u8> {
        let (at, len) = self.pieces.get(piece).map_or((0, 0), |piece| (piece.at, piece.len()));
        let mut entry = vec![b'C', b'E', CE_BYTES as u8, 1];
        entry.extend(both_32(block + (at / BLOCK_BYTES) as u32));
        entry.extend(both_32((at % BLOCK_BYTES) as u32));
        entry.extend(both_32(len as u32));
        entry
    }

    /// Takes the entries in, and says which piece is the first.
    fn add(&mut self, entries: &[Vec<u8>]) -> usize {
        let mut pieces: Vec<Vec<u8>> = vec![Vec::new()];
        for entry in entries {
            let full = pieces.last().is_some_and(|last| last.len() + entry.len() + CE_BYTES > BLOCK_BYTES as usize);
            if full {
                pieces.push(Vec::new());
            }
            if let Some(last) = pieces.last_mut() {
                last.extend_from_slice(entry);
            }
        }
        let first = self.pieces.len();
        let count = pieces.len();
        for (number, entries) in pieces.into_iter().enumerate() {
            let next = (number + 1 < count).then_some(first + number + 1);
            let mut piece = Piece { at: self.used, entries, next };
            if self.used % BLOCK_BYTES + piece.len() as u64 > BLOCK_BYTES {
                piece.at = self.used.next_multiple_of(BLOCK_BYTES);
            }
            self.used = piece.at + piece.len() as u64;
            self.pieces.push(piece);
        }
        first
    }
}

impl SystemUse {
    /// Of entries in a record that has `base` bytes without them.
    pub fn new(entries: Vec<Vec<u8>>, base: usize, continued: &mut Continued) -> Self {
        let room = RECORD_MAX - base;
        let even = |len: usize| len.next_multiple_of(2);
        if even(entries.iter().map(Vec::len).sum()) <= room {
            return Self { inline: entries.concat(), next: None };
        }
        let mut inline = Vec::new();
        let mut fitting = 0;
        for entry in &entries {
            if inline.len() + entry.len() + CE_BYTES > room {
                break;
            }
            inline.extend_from_slice(entry);
            fitting += 1;
        }
        let next = continued.add(entries.get(fitting..).unwrap_or_default());
        Self { inline, next: Some(next) }
    }

    /// Bytes in the record: an even number.
    pub fn len(&self) -> usize {
        (self.inline.len() + if self.next.is_some() { CE_BYTES } else { 0 }).next_multiple_of(2)
    }

    pub fn bytes(&self, continued: &Continued, block: u32) -> Vec<u8> {
        let mut bytes = self.inline.clone();
        bytes.extend(self.next.into_iter().flat_map(|next| continued.pointer(next, block)));
        bytes.resize(self.len(), 0);
        bytes
    }
}

fn entry(signature: &[u8; 2], data: &[u8]) -> Vec<u8> {
    [&signature[..], &[data.len() as u8 + 4, 1], data].concat()
}

/// PX and TF.
fn attributes(tree: &Tree, index: Index) -> Vec<Vec<u8>> {
    let node = tree.node(index);
    let mode = node.file_type.mode_bits() | u32::from(node.permissions);
    let numbers = [mode, node.links, node.owner.0, node.owner.1, index as u32 + 1];
    let px: Vec<u8> = numbers.into_iter().flat_map(both_32).collect();
    // Modification, access, change.
    let mut tf = vec![0x0e];
    (0..3).for_each(|_| tf.extend(date(node.modified)));
    vec![entry(b"PX", &px), entry(b"TF", &tf)]
}

/// Those of a directory's record of itself, or of the one above; the root's own says what the rest is.
pub(super) fn of_directory(tree: &Tree, index: Index, first: bool) -> Vec<Vec<u8>> {
    let mut entries = Vec::new();
    if first {
        entries.push(entry(b"SP", &[0xbe, 0xef, 0]));
    }
    entries.extend(attributes(tree, index));
    if first {
        // Identifier, description, source; version 1.
        for (id, what, source) in [
            ("IEEE_1282", "POSIX FILE SYSTEM SEMANTICS", "IEEE P1282, ROCK RIDGE 1.12"),
            ("AAIP_0200", "ATTRIBUTES AND ACCESS CONTROL LISTS", "LIBISOFS, AAIP 2.0"),
        ] {
            let lengths = [id.len() as u8, what.len() as u8, source.len() as u8, 1];
            entries.push(entry(b"ER", &[&lengths[..], id.as_bytes(), what.as_bytes(), source.as_bytes()].concat()));
        }
    }
    entries.extend(attribute_list(tree.node(index)));
    debug_assert!(!first || index == ROOT);
    entries
}

/// Those of a name in a directory.
pub(super) fn of_entry(tree: &Tree, index: Index, name: &[u8]) -> Vec<Vec<u8>> {
    let node = tree.node(index);
    let mut entries = attributes(tree, index);
    let mut parts = name.chunks(ENTRY_MAX - 5).peekable();
    while let Some(part) = parts.next() {
        let flags = if parts.peek().is_some() { GOES_ON } else { 0 };
        entries.push(entry(b"NM", &[&[flags], part].concat()));
    }
    if let Some((major, minor)) = node.device {
        // A major number of 0 is taken for all of it in the low part.
        let low = if major == 0 { minor & 0xff | (minor & 0xf_ff00) << 12 } else { minor };
        entries.push(entry(b"PN", &both_32(major).chain(both_32(low)).collect::<Vec<u8>>()));
    }
    if node.file_type == FileType::SymbolicLink {
        entries.extend(target(&node.target));
    }
    entries.extend(attribute_list(node));
    entries
}

/// Puts pieces of at most so many bytes into entries with a byte of flags, of which all but the last go on.
fn filled(signature: &[u8; 2], components: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut bodies: Vec<Vec<u8>> = vec![Vec::new()];
    for component in components {
        if bodies.last().is_some_and(|last| 5 + last.len() + component.len() > ENTRY_MAX) {
            bodies.push(Vec::new());
        }
        bodies.last_mut().into_iter().for_each(|last| last.extend_from_slice(&component));
    }
    let count = bodies.len();
    let flagged = bodies
        .into_iter()
        .enumerate()
        .map(|(number, body)| entry(signature, &[&[if number + 1 < count { GOES_ON } else { 0 }][..], &body].concat()));
    flagged.collect()
}

/// Bytes as components: flags, length, bytes. An empty one is one, too.
fn components(bytes: &[u8]) -> Vec<Vec<u8>> {
    let most = ENTRY_MAX - 7;
    let count = bytes.len().div_ceil(most).max(1);
    let parts = (0..count).map(|number| {
        let part = bytes.get(number * most..(number * most + most).min(bytes.len())).unwrap_or_default();
        [&[if number + 1 < count { GOES_ON } else { 0 }, part.len() as u8], part].concat()
    });
    parts.collect()
}

/// SL: the target of a symbolic link.
fn target(target: &[u8]) -> Vec<Vec<u8>> {
    const CURRENT: u8 = 2;
    const PARENT: u8 = 4;
    const ROOT_DIRECTORY: u8 = 8;
    let mut all = Vec::new();
    let rest = match target.strip_prefix(b"/") {
        Some(rest) => {
            all.push(vec![ROOT_DIRECTORY, 0]);
            rest
        }
        None => target,
    };
    if !rest.is_empty() {
        for part in rest.split(|byte| *byte == b'/') {
            match part {
                b"." => all.push(vec![CURRENT, 0]),
                b".." => all.push(vec![PARENT, 0]),
                part => all.extend(components(part)),
            }
        }
    }
    filled(b"SL", all)
}

/// The number that stands for a namespace, and the rest of the name.
fn namespace(name: &[u8]) -> Option<Vec<u8>> {
    let known: [(u8, &[u8]); 3] = [(3, b"user."), (5, b"trusted."), (6, b"security.")];
    let (number, rest) = known.into_iter().find_map(|(number, prefix)| Some((number, name.strip_prefix(prefix)?)))?;
    (!rest.is_empty()).then(|| [&[number], rest].concat())
}

/// The attributes that are kept: names as they are written, and values.
fn kept(node: &Node) -> Vec<(Vec<u8>, &[u8])> {
    let mut room = XATTRS_BYTES_MAX;
    let fitting = node.xattrs.iter().filter_map(|(name, value)| {
        let own = namespace(name)?;
        // Two bytes in 248 for lengths.
        let bytes = (own.len() + value.len() + 8) * 255 / 240;
        room = room.checked_sub(bytes)?;
        Some((own, value.as_slice()))
    });
    fitting.collect()
}

/// Those that are not.
pub(super) fn left_out(node: &Node) -> Vec<&[u8]> {
    let kept = kept(node);
    let is_kept = |name: &[u8]| namespace(name).is_some_and(|own| kept.iter().any(|(kept, _)| *kept == own));
    node.xattrs.iter().map(|(name, _)| name.as_slice()).filter(|name| !is_kept(name)).collect()
}

/// AL: attributes, last of all.
fn attribute_list(node: &Node) -> Vec<Vec<u8>> {
    let all: Vec<Vec<u8>> =
        kept(node).into_iter().flat_map(|(name, value)| [components(&name), components(value)].concat()).collect();
    if all.is_empty() { Vec::new() } else { filled(b"AL", all) }
}
