//! Rock Ridge (RRIP, IEEE P1282): what POSIX knows of a file, in system use entries.
//!
//! ```text
//! PX  mode, links, user, group, [serial number]     each as LE and BE
//! PN  device number, high and low
//! NM  flags │ name                                  flag 1: the name goes on in the next NM
//! SL  flags │ components: flags, length, bytes      flag 1: they go on in the next SL; of a component: in the next one
//! TF  flags: which, bit 7: long │ dates             created, modified, accessed, attributes changed, …
//! CL  block of the directory that is really here    PL  block of its real parent     RE  shown elsewhere
//! ZF  algorithm │ header/4 │ log2 block │ size      the content is compressed
//! SF  sparse file (written by no known program)
//! ```

use super::corrupt::{Corrupt, Parsed};
use super::date;
use super::susp::Reader;
use super::zisofs::Compression;
use crate::{LINK_BYTES_MAX, NAME_BYTES_MAX, Time};
use block::bytes::{byte, le_u32};

const CONTINUE: u8 = 1;

/// The name of a record, and what else a directory's listing wants to know.
#[derive(Debug, Default)]
pub(super) struct Name {
    /// The name, empty where there is none.
    pub bytes: Vec<u8>,
    /// Whether the file is a directory that was moved here, and is shown elsewhere.
    pub relocated: bool,
    /// Whether a directory stands here really.
    pub child_link: bool,
    /// The mode, where it was met.
    pub mode: Option<u32>,
    complete: bool,
    /// Whether entries behind the name are of interest: RE may stand there.
    pub directory: bool,
}

impl Name {
    /// Forgets the last record.
    pub fn clear(&mut self, directory: bool) {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Self { bytes, directory, ..Self::default() };
    }
}

impl Reader for Name {
    fn entry(&mut self, signature: [u8; 2], _version: u8, data: &[u8]) -> Parsed<()> {
        match &signature {
            b"NM" if !self.complete => {
                let (flags, part) = data.split_first().ok_or(Corrupt::SystemUse)?;
                // The other flags stand for "." and "..", or for the name of the machine.
                if flags & !CONTINUE == 0 {
                    if self.bytes.len().saturating_add(part.len()) > NAME_BYTES_MAX {
                        return Err(Corrupt::SystemUse);
                    }
                    self.bytes.extend_from_slice(part);
                    self.complete = flags & CONTINUE == 0;
                }
            }
            b"RE" => self.relocated = true,
            b"CL" => self.child_link = true,
            b"PX" => self.mode = le_u32(data, 0),
            _ => {}
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        !self.complete || self.directory
    }
}

/// Everything that stat tells.
#[derive(Debug, Default, Clone)]
pub(super) struct Attributes {
    /// Type and permissions.
    pub mode: Option<u32>,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// What all names of one file have in common.
    pub serial: Option<u32>,
    /// High and low part of a device number.
    device: Option<(u32, u32)>,
    pub created: Option<Time>,
    pub modified: Option<Time>,
    pub accessed: Option<Time>,
    pub changed: Option<Time>,
    /// The target of a symbolic link.
    pub target: Vec<u8>,
    target_state: TargetState,
    /// The block of the directory that is really here.
    pub child_link: Option<u32>,
    /// How the content is compressed.
    pub compression: Option<Compression>,
    /// Whether it is a sparse file.
    pub sparse: bool,
    attribute_list: bool,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum TargetState {
    /// Nothing, or a slash, stands before.
    #[default]
    AfterSlash,
    /// A complete component stands before: a slash is due.
    AfterComponent,
    /// The component that stands before goes on.
    InComponent,
}

impl Reader for Attributes {
    fn entry(&mut self, signature: [u8; 2], version: u8, data: &[u8]) -> Parsed<()> {
        let field = |at| le_u32(data, at).ok_or(Corrupt::SystemUse);
        match &signature {
            b"PX" => {
                self.mode = Some(field(0)?);
                self.links = field(8)?;
                self.uid = field(16)?;
                self.gid = field(24)?;
                self.serial = le_u32(data, 32).filter(|serial| *serial != 0);
            }
            b"PN" => self.device = Some((field(0)?, field(8)?)),
            b"TF" => self.times(data)?,
            b"SL" => self.link_target(data.get(1..).ok_or(Corrupt::SystemUse)?)?,
            b"CL" => self.child_link = Some(field(0)?),
            b"ZF" | b"Z2" => self.compression = Some(Compression::parse(version, data)?),
            b"SF" => self.sparse = true,
            b"AL" => self.attribute_list = true,
            _ => {}
        }
        Ok(())
    }

    fn wants_more(&self) -> bool {
        // Attribute lists stand last, and can be long.
        !(self.attribute_list && self.mode.is_some())
    }
}

impl Attributes {
    /// Major and minor number. The writers put the whole number into the low part, as the C library has it; a few put
    /// the major one into the high part. The kernel tells them apart in the same way.
    pub fn device(&self) -> (u32, u32) {
        match self.device.unwrap_or_default() {
            (0, low) => ((low >> 8) & 0xfff, (low & 0xff) | ((low >> 12) & 0xfff00)),
            (high, low) => (high, low),
        }
    }

    fn times(&mut self, data: &[u8]) -> Parsed<()> {
        let (flags, mut dates) = data.split_first().ok_or(Corrupt::SystemUse)?;
        let long = flags & 0x80 != 0;
        let len = if long { 17 } else { 7 };
        for bit in 0..7_u32 {
            if flags >> bit & 1 == 0 {
                continue;
            }
            let (bytes, rest) = dates.split_at_checked(len).ok_or(Corrupt::SystemUse)?;
            dates = rest;
            let time = if long { date::long(bytes) } else { Some(date::short(bytes)) };
            match bit {
                0 => self.created = time,
                1 => self.modified = time,
                2 => self.accessed = time,
                3 => self.changed = time,
                _ => {}
            }
        }
        Ok(())
    }

    fn link_target(&mut self, mut components: &[u8]) -> Parsed<()> {
        const CURRENT: u8 = 2;
        const PARENT: u8 = 4;
        const ROOT: u8 = 8;
        while let Some((flags, rest)) = components.split_first().filter(|(_, rest)| !rest.is_empty()) {
            let len = usize::from(byte(rest, 0).ok_or(Corrupt::SystemUse)?);
            let content = rest.get(1..).and_then(|rest| rest.get(..len)).ok_or(Corrupt::SystemUse)?;
            components = rest.get(len.saturating_add(1)..).unwrap_or(&[]);
            if self.target_state == TargetState::AfterComponent {
                self.target.push(b'/');
            }
            self.target.extend_from_slice(match flags & !CONTINUE {
                CURRENT => b".",
                PARENT => b"..",
                ROOT => b"/",
                _ => content,
            });
            if self.target.len() > LINK_BYTES_MAX {
                return Err(Corrupt::LinkTarget);
            }
            self.target_state = if flags & ROOT != 0 {
                TargetState::AfterSlash
            } else if flags & CONTINUE != 0 {
                TargetState::InComponent
            } else {
                TargetState::AfterComponent
            };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn target(entries: &[&[u8]]) -> Parsed<Vec<u8>> {
        let mut attributes = Attributes::default();
        for data in entries {
            attributes.entry(*b"SL", 1, data)?;
        }
        Ok(attributes.target)
    }

    #[test]
    fn targets_of_links_are_put_together() {
        assert_eq!(target(&[b"\0\x08\0\0\x03usr\0\x03bin"]).unwrap(), b"/usr/bin");
        assert_eq!(target(&[b"\0\x04\0\x04\0\x02\0\0\x01a"]).unwrap(), b"../.././a");
        assert_eq!(target(&[b"\0\x08\0"]).unwrap(), b"/");
        // A component that goes on in the next record, and in the next entry.
        assert_eq!(target(&[b"\0\x01\x02ab\0\x02cd\0\x01e"]).unwrap(), b"abcd/e");
        assert_eq!(target(&[b"\x01\0\x01x\x01\x02ab", b"\0\0\x02cd\0\x01e"]).unwrap(), b"x/abcd/e");
        // Components that end with their entry.
        assert_eq!(target(&[b"\x01\0\x02ab", b"\0\0\x02cd"]).unwrap(), b"ab/cd");
        assert_eq!(target(&[b"\x01\x08\0", b"\0\0\x02cd"]).unwrap(), b"/cd");
        assert_eq!(target(&[b"\0\0\x09ab"]), Err(Corrupt::SystemUse));
        let long: &[u8] = &[&b"\0\0\xf8"[..], &[b'x'; 248]].concat();
        assert_eq!(target(&[long; 17]), Err(Corrupt::LinkTarget));
    }

    #[test]
    fn device_numbers_of_both_kinds_of_writers() {
        let device = |high, low| Attributes { device: Some((high, low)), ..Attributes::default() }.device();
        assert_eq!(device(0, 0x0103), (1, 3));
        assert_eq!(device(8, 17), (8, 17));
        assert_eq!(device(0, 0x1111_0370), (259, 70_000));
    }

    #[test]
    fn times_long_and_short() {
        let mut attributes = Attributes::default();
        attributes.entry(*b"TF", 1, b"\x81\x32\x30\x32\x36112200504400\0").unwrap();
        assert_eq!(attributes.created, Some(Time { seconds: 1_795_308_644, nanoseconds: 0 }));
        attributes.entry(*b"TF", 1, &[0x0a, 70, 1, 1, 0, 0, 1, 0, 70, 1, 1, 0, 0, 2, 0]).unwrap();
        assert_eq!(attributes.modified, Some(Time { seconds: 1, nanoseconds: 0 }));
        assert_eq!(attributes.changed, Some(Time { seconds: 2, nanoseconds: 0 }));
        assert_eq!(attributes.entry(*b"TF", 1, &[0x02, 70]), Err(Corrupt::SystemUse));
    }
}
