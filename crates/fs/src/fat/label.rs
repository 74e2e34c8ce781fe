//! The label of the file system, and how much of it is free.

use std::ops::ControlFlow;

use block::Result;
use block::bytes::{byte, has, le_u16, le_u32};

use super::boot::Variant;
use super::directory::Seen;
use super::entry::{LABEL, Raw, VOLUME_LABEL};
use super::free::Free;
use super::table::Link;
use super::{Fat, ROOT, name};

/// Letters of a label of exFAT.
const EXFAT_LABEL_UNITS: usize = 11;

impl Fat {
    /// The entry of the root directory that holds the label, and where it is.
    pub(super) fn label_entry(&self) -> Result<Option<(u64, Raw)>> {
        let node = self.directory(&self.state(), ROOT)?;
        let mut found = None;
        self.scan(&node.chain, 0, &mut |seen| match seen {
            Seen::Label(at, raw) => {
                found = Some((at, raw));
                ControlFlow::Break(())
            }
            _ => ControlFlow::Continue(()),
        })?;
        Ok(found)
    }

    /// The label in the root directory, or else in the boot sector.
    pub(super) fn read_label(&self) -> Result<String> {
        if let Some((_, raw)) = self.label_entry()? {
            return Ok(self.label_of(&raw));
        }
        let Some(at) = self.geometry.label_at else { return Ok(String::new()) };
        let mut bytes = [0; 11];
        self.device.read_at(&mut bytes, at)?;
        let label = self.options.code_page.text(&bytes);
        Ok(if label == "NO NAME" { String::new() } else { label })
    }

    fn label_of(&self, raw: &Raw) -> String {
        if !self.geometry.is_exfat() {
            let mut short = name::short_at(raw);
            // As in names, it stands for 0xE5.
            short.iter_mut().take(1).filter(|first| **first == 5).for_each(|first| *first = 0xe5);
            return self.options.code_page.text(&short);
        }
        let len = usize::from(byte(raw, 1).unwrap_or_default()).min(EXFAT_LABEL_UNITS);
        let units: Vec<u16> = (2..24).step_by(2).filter_map(|at| le_u16(raw, at)).take(len).collect();
        String::from_utf16_lossy(&units)
    }

    /// An entry with a label.
    pub(super) fn new_label(&self, label: &str, old: Option<Raw>) -> Result<Raw> {
        let mut raw = old.unwrap_or_default();
        if self.geometry.is_exfat() {
            let units: Vec<u16> = label.encode_utf16().collect();
            if units.len() > EXFAT_LABEL_UNITS {
                let text = format!("{label:?} as a label: exFAT has {EXFAT_LABEL_UNITS} characters");
                return Err(block::Error::new(block::Kind::Invalid, text));
            }
            raw = [0; 32];
            let bytes =
                [VOLUME_LABEL, units.len() as u8].into_iter().chain(units.iter().flat_map(|unit| unit.to_le_bytes()));
            raw.iter_mut().zip(bytes).for_each(|(to, byte)| *to = byte);
            return Ok(raw);
        }
        raw.iter_mut().zip(name::label(label)?).for_each(|(to, byte)| *to = byte);
        raw.iter_mut().skip(11).take(1).for_each(|to| *to = LABEL as u8);
        Ok(raw)
    }

    /// Clusters that no file has: counted, or as FAT32 says where nobody has changed it since.
    pub(super) fn free_clusters(&self) -> Result<u32> {
        if let Some(free) = &self.state().free {
            return Ok(free.count());
        }
        let clusters = self.geometry.clusters;
        if let Some(at) = self.geometry.info_at.filter(|_| !self.state().was_dirty) {
            let info = block::bytes::read_up_to(&*self.device, at, 512)?;
            let is_info = has(&info, 0, b"RRaA") && has(&info, 484, b"rrAa");
            if let Some(free) = le_u32(&info, 488).filter(|free| is_info && *free <= clusters) {
                return Ok(free);
            }
        }
        if self.geometry.variant == Variant::ExFat {
            return match self.bitmap.bytes {
                0 => Ok(0),
                _ => Free::of_bitmap(&*self.device, &self.geometry, &self.bitmap).map(|free| free.count()),
            };
        }
        let mut free = 0_u32;
        for index in 0..clusters {
            if self.table.get(&*self.device, &self.geometry, index.saturating_add(2))? == Link::Free {
                free = free.saturating_add(1);
            }
        }
        Ok(free)
    }
}
