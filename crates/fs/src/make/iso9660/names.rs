//! Identifiers: what a name becomes for systems that know no Rock Ridge.

use std::collections::HashSet;

use super::super::tree::{Index, Node, Tree};
use super::is_shown;
use crate::FileType;

/// Letters of name and extension together (7.5.1 of ECMA-119, level 2).
const LETTERS_MAX: usize = 30;
const EXTENSION_MAX: usize = 8;
/// Units of a name of Joliet.
const JOLIET_UNITS_MAX: usize = 64;
/// Behind each name of a file: its version.
const VERSION: &str = ";1";

/// The entries of a directory in one of the views, sorted by identifier: name, file, identifier. No two are the same.
pub(super) fn identifiers(tree: &Tree, directory: &Node, joliet: bool) -> Vec<(Box<[u8]>, Index, Vec<u8>)> {
    let mut taken = HashSet::new();
    let mut entries = Vec::new();
    for (name, index) in &directory.children {
        let node = tree.node(*index);
        if !is_shown(node, joliet) {
            continue;
        }
        let is_directory = node.file_type == FileType::Directory;
        let (front, extension) = if joliet { joliet_parts(name) } else { primary_parts(name, is_directory) };
        let most = if joliet { JOLIET_UNITS_MAX } else { LETTERS_MAX + 1 };
        let separator = usize::from(!extension.is_empty() || (!joliet && !is_directory));
        let tried = (0_u32..).map(|number| {
            let tail: Vec<u16> = if number == 0 { Vec::new() } else { format!("_{number}").encode_utf16().collect() };
            let keep = most.saturating_sub(separator + extension.len() + tail.len());
            let mut units: Vec<u16> = front.iter().copied().take(keep).chain(tail).collect();
            if separator > 0 {
                units.push(u16::from(b'.'));
                units.extend_from_slice(&extension);
            }
            units
        });
        let mut tried = tried.filter(|units| !taken.contains(units));
        let Some(units) = tried.next() else { continue };
        taken.insert(units.clone());
        let version: &str = if is_directory { "" } else { VERSION };
        let all = units.iter().copied().chain(version.encode_utf16());
        let identifier: Vec<u8> =
            if joliet { all.flat_map(u16::to_be_bytes).collect() } else { all.map(|unit| unit as u8).collect() };
        entries.push((name.clone(), *index, identifier));
    }
    // As if blanks stood behind the shorter name and the shorter extension (9.3).
    entries.sort_by_cached_key(|(_, _, identifier)| {
        if joliet {
            return (identifier.clone(), Vec::new());
        }
        let mut parts = identifier.split(|byte| *byte == b'.' || *byte == b';').map(<[u8]>::to_vec);
        (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
    });
    entries
}

/// Name and extension of capitals, digits and underscores.
fn primary_parts(name: &[u8], directory: bool) -> (Vec<u16>, Vec<u16>) {
    let letters = |bytes: &[u8]| -> Vec<u16> {
        let text = String::from_utf8_lossy(bytes);
        let mapped = text.chars().map(|letter| match letter.to_ascii_uppercase() {
            upper @ ('A'..='Z' | '0'..='9') => upper as u16,
            _ => u16::from(b'_'),
        });
        mapped.collect()
    };
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0 && !directory);
    let (front, extension) = match dot.and_then(|dot| name.split_at_checked(dot)) {
        Some((front, extension)) => (letters(front), letters(extension.get(1..).unwrap_or_default())),
        None => (letters(name), Vec::new()),
    };
    (front, extension.into_iter().take(EXTENSION_MAX).collect())
}

/// The name without what Joliet forbids, and its extension where it has one.
fn joliet_parts(name: &[u8]) -> (Vec<u16>, Vec<u16>) {
    let units = |bytes: &[u8]| -> Vec<u16> {
        let text = String::from_utf8_lossy(bytes);
        let mapped = text.chars().map(|letter| match letter {
            '\0'..='\x1f' | '*' | '/' | ':' | ';' | '?' | '\\' => '_',
            other => other,
        });
        mapped.collect::<String>().encode_utf16().collect()
    };
    let dot = name.iter().rposition(|byte| *byte == b'.').filter(|dot| *dot > 0);
    let parts = dot.and_then(|dot| name.split_at_checked(dot)).filter(|(_, tail)| (2..=16).contains(&tail.len()));
    match parts {
        Some((front, extension)) => (units(front), units(extension.get(1..).unwrap_or_default())),
        None => (units(name), Vec::new()),
    }
}
