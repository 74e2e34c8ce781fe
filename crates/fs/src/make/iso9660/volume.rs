//! Volume descriptors (8 of ECMA-119).

use block::{Error, Kind, Result};

use super::super::Make;
use super::{BLOCK_BYTES, DESCRIPTORS_BLOCK, FLAG_DIRECTORY, Plan, Side, both_16, both_32, calendar, date};
use crate::Time;

const LABEL_MAX: usize = 32;
/// Joliet of level 3: UCS-2.
const JOLIET_ESCAPE: &[u8] = b"%/E";

/// That a label can be given.
pub(super) fn check_label(label: &str) -> Result<()> {
    if label.len() > LABEL_MAX || !label.bytes().all(|byte| matches!(byte, 32..=126)) {
        let text = format!("{label:?} as a label: ISO 9660 has {LABEL_MAX} characters of ASCII");
        return Err(Error::new(Kind::Invalid, text));
    }
    Ok(())
}

/// A time in seventeen bytes: digits, hundredths and zone (8.4.26.1); none for none.
fn long_date(time: Option<Time>) -> Vec<u8> {
    match time {
        Some(time) => {
            let seconds = time.seconds.clamp(0, 253_402_300_799);
            let (year, [month, day, hour, minute, second]) = calendar(Time { seconds, nanoseconds: 0 });
            let mut text = format!("{year:04}{month:02}{day:02}{hour:02}{minute:02}{second:02}00").into_bytes();
            text.push(0);
            text
        }
        None => [&[b'0'; 16][..], &[0]].concat(),
    }
}

impl Plan<'_> {
    /// Descriptors and path tables, each with its block.
    pub fn descriptors(&self, make: &Make) -> Vec<(Vec<u8>, u32)> {
        let mut end = vec![255];
        end.extend_from_slice(b"CD001\x01");
        end.resize(BLOCK_BYTES as usize, 0);
        let mut all = vec![
            (self.descriptor(make, &self.primary), DESCRIPTORS_BLOCK),
            (self.descriptor(make, &self.joliet), DESCRIPTORS_BLOCK + 1),
            (end, DESCRIPTORS_BLOCK + 2),
        ];
        for side in [&self.primary, &self.joliet] {
            all.extend(
                [false, true].into_iter().zip(side.path_tables).map(|(big, block)| (side.path_table(big), block)),
            );
        }
        all
    }

    fn descriptor(&self, make: &Make, side: &Side) -> Vec<u8> {
        let text = |text: &str, bytes: usize| -> Vec<u8> {
            let units = text.encode_utf16().chain(std::iter::repeat(u16::from(b' ')));
            if side.joliet {
                let mut wide: Vec<u8> = units.take(bytes / 2).flat_map(u16::to_be_bytes).collect();
                wide.resize(bytes, 0);
                wide
            } else {
                units.take(bytes).map(|unit| unit as u8).collect()
            }
        };
        let mut bytes = vec![if side.joliet { 2 } else { 1 }];
        bytes.extend_from_slice(b"CD001\x01\0");
        bytes.extend(text("", 32));
        bytes.extend(text(&make.label, 32));
        bytes.extend([0; 8]);
        bytes.extend(both_32(self.end));
        let mut escape = if side.joliet { JOLIET_ESCAPE.to_vec() } else { Vec::new() };
        escape.resize(32, 0);
        bytes.extend(escape);
        // One volume of one, and the size of blocks.
        for number in [1, 1, BLOCK_BYTES as u16] {
            bytes.extend(both_16(number));
        }
        bytes.extend(both_32(side.path_table_bytes));
        let [low, high] = side.path_tables;
        bytes.extend(low.to_le_bytes().into_iter().chain([0; 4]));
        bytes.extend(high.to_be_bytes().into_iter().chain([0; 4]));
        let (block, len) = self.extent(side, super::super::tree::ROOT);
        bytes.extend([34, 0]);
        bytes.extend(both_32(block).chain(both_32(len as u32)));
        bytes.extend(date(self.tree.root().modified));
        bytes.extend([FLAG_DIRECTORY, 0, 0]);
        bytes.extend(both_16(1));
        bytes.extend([1, 0]);
        // Set, publisher, preparer, application; copyright, abstract and bibliographic files.
        for (word, len) in [("", 128), ("", 128), ("", 128), ("LOOPBOX", 128), ("", 37), ("", 37), ("", 37)] {
            bytes.extend(text(word, len));
        }
        for time in [Some(make.time), Some(make.time), None, None] {
            bytes.extend(long_date(time));
        }
        bytes.push(1);
        bytes.resize(BLOCK_BYTES as usize, 0);
        bytes
    }
}
