//! Partition tables: MBR and GPT, read as the kernel reads them, trusting no count.
//!
//! ```text
//! sector 0        MBR: boot code, disk id (0x1b8), four entries (0x1be), 55 aa (0x1fe)
//! sector 1        GPT header; its entries from sector 2 on           (UEFI 2.10, 5.3)
//! …               partitions; an extended one holds a chain of MBRs of its own
//! last sectors    GPT entries again, and the backup header in the very last
//! ```
//!
//! What is found when both are there follows the kernel's `block/partitions`: the GPT counts when sector 0 protects it (an
//! entry of type `ee` at sector 1), otherwise the MBR does; the other one is kept in [`Table::shadowed`]. Hybrid ISO
//! images are of that kind. Unlike the kernel, the backup GPT is used when the primary one is damaged.

use std::collections::BTreeSet;
use std::fmt;

use block::bytes::{has, read_up_to};
use block::{Error, Kind, ReadAt, Result};
use serde::{Serialize, Serializer};

use crate::spec::Selector;

pub mod create;
pub mod gpt;
pub mod guid;
pub mod mbr;

/// What kind of table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// Master boot record; util-linux says `dos`.
    Mbr,
    /// GUID partition table.
    Gpt,
}

/// A partition table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Table {
    /// What kind.
    pub scheme: Scheme,
    /// The disk's id: eight hexadecimal digits, or a GUID.
    pub id: Option<String>,
    /// Bytes of the sectors that it counts in.
    pub sector_bytes: u32,
    /// The partitions, by number.
    pub partitions: Vec<Partition>,
    /// What is wrong or remarkable.
    pub problems: Vec<Problem>,
    /// The table of the other scheme that is there too, and does not count.
    pub shadowed: Option<Box<Table>>,
}

/// One partition.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// As the kernel counts: from 1; logical ones from 5.
    pub number: u32,
    /// First byte.
    pub start_byte: u64,
    /// Bytes, as claimed: see [`Partition::range`].
    pub size_bytes: u64,
    /// Its type as stored: two hexadecimal digits, or a GUID.
    pub type_id: String,
    /// What that type is called.
    pub type_name: Option<&'static str>,
    /// Where in an MBR it stands; always `Primary` in a GPT.
    pub role: Role,
    /// The name that a GPT gives it; empty where it gives none.
    pub name: String,
    /// Its own UUID, for an MBR the disk's id and the number, as in PARTUUID=.
    pub uuid: Option<String>,
    /// The MBR's active flag, or the GPT's legacy BIOS bootable attribute.
    pub bootable: bool,
    /// The GPT's attribute bits; 0 in an MBR.
    pub attributes: u64,
}

/// Where in a table a partition stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// In the table itself.
    Primary,
    /// A box for logical ones.
    Extended,
    /// In the chain of an extended one.
    Logical,
}

/// What is wrong or remarkable in a table, without making it unusable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A partition begins behind the end of the device.
    StartsBeyondEnd {
        /// Its number.
        number: u32,
        /// Size of the device, bytes.
        device_bytes: u64,
    },
    /// A partition begins inside and ends behind the end of the device.
    EndsBeyondEnd {
        /// Its number.
        number: u32,
        /// Size of the device, bytes.
        device_bytes: u64,
    },
    /// Two partitions share bytes.
    Overlap(u32, u32),
    /// A partition begins at byte 0 and so holds the table.
    HoldsTable {
        /// Its number.
        number: u32,
    },
    /// An entry ends before it begins, and is left out.
    NegativeSize {
        /// Its number.
        number: u32,
    },
    /// The chain of logical partitions leads back to a sector that it has been at.
    ChainLoops {
        /// The sector.
        sector: u64,
    },
    /// The chain of logical partitions is longer than [`mbr::LOGICAL_MAX`].
    ChainTooLong,
    /// A link of the chain of logical partitions is behind the end of the device, or has no signature.
    ChainBroken {
        /// The sector.
        sector: u64,
    },
    /// The primary GPT is damaged; this is its backup.
    PrimaryDamaged(gpt::Corrupt),
    /// The backup GPT is damaged or missing.
    BackupDamaged(gpt::Corrupt),
    /// The backup GPT is not in the last sector: the device has grown or was cut.
    BackupNotAtEnd {
        /// Where it is said to be.
        sector: u64,
    },
    /// The MBR in front of the GPT holds partitions of its own.
    HybridMbr,
    /// There is a GPT too, which the kernel does not use as the MBR does not protect it.
    GptNotProtected,
    /// The MBR protects a GPT that is not there, or is damaged in both places.
    NoGpt(gpt::Corrupt),
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::StartsBeyondEnd { number, device_bytes } => {
                write!(f, "partition {number} begins behind the end of the device ({device_bytes} bytes)")
            }
            Self::EndsBeyondEnd { number, device_bytes } => {
                write!(
                    f,
                    "partition {number} ends behind the end of the device ({device_bytes} bytes): it is cut there"
                )
            }
            Self::Overlap(one, other) => write!(f, "partitions {one} and {other} overlap"),
            Self::HoldsTable { number } => write!(f, "partition {number} begins at byte 0 and holds the table"),
            Self::NegativeSize { number } => write!(f, "entry {number} ends before it begins: left out"),
            Self::ChainLoops { sector } => write!(f, "the chain of logical partitions loops at sector {sector}"),
            Self::ChainTooLong => write!(f, "more than {} logical partitions", mbr::LOGICAL_MAX),
            Self::ChainBroken { sector } => write!(f, "the chain of logical partitions breaks off at sector {sector}"),
            Self::PrimaryDamaged(why) => write!(f, "the primary GPT is damaged ({why}): this is its backup"),
            Self::BackupDamaged(why) => write!(f, "the backup GPT is damaged ({why})"),
            Self::BackupNotAtEnd { sector } => {
                write!(f, "the backup GPT is at sector {sector}, not in the last one: the device was resized")
            }
            Self::HybridMbr => f.write_str("the protective MBR holds partitions of its own (hybrid MBR)"),
            Self::GptNotProtected => f.write_str("there is a GPT too; it does not count, as no MBR entry protects it"),
            Self::NoGpt(why) => write!(f, "the MBR protects a GPT, but there is no valid one ({why})"),
        }
    }
}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Partition {
    /// First byte and number of bytes that are there, on a device of `device_bytes`: as the kernel does, a partition
    /// that ends behind the end of the device is cut.
    ///
    /// # Errors
    /// [`Kind::OutOfRange`] when it begins behind the end.
    pub fn range(&self, device_bytes: u64) -> Result<(u64, u64)> {
        match device_bytes.checked_sub(self.start_byte) {
            Some(there) if there > 0 => Ok((self.start_byte, self.size_bytes.min(there))),
            _ => Err(Error::new(
                Kind::OutOfRange,
                format!("partition {} begins at byte {} of {device_bytes}", self.number, self.start_byte),
            )),
        }
    }
}

impl Table {
    /// The partition that `selector` names. `identify` says the label and the UUID of the file system in a partition
    /// (empty where there is none); it is asked only where the selector is about them.
    ///
    /// # Errors
    /// [`Kind::NotFound`], listing what there is; the failure of `identify`.
    pub fn find(
        &self,
        selector: &Selector,
        mut identify: impl FnMut(&Partition) -> Result<(String, String)>,
    ) -> Result<&Partition> {
        for partition in &self.partitions {
            let fits = match selector {
                Selector::Number(number) => partition.number == *number,
                Selector::PartLabel(name) => partition.name.as_str() == name,
                Selector::PartUuid(uuid) => partition.uuid.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(uuid)),
                Selector::Label(label) => identify(partition)?.0.as_str() == label,
                Selector::Uuid(uuid) => identify(partition)?.1.eq_ignore_ascii_case(uuid),
            };
            if fits {
                return Ok(partition);
            }
        }
        let wanted = match selector {
            Selector::Number(number) => format!("{number}"),
            Selector::Label(name) => format!("LABEL={}", name.display()),
            Selector::Uuid(uuid) => format!("UUID={uuid}"),
            Selector::PartLabel(name) => format!("PARTLABEL={}", name.display()),
            Selector::PartUuid(uuid) => format!("PARTUUID={uuid}"),
        };
        let there: Vec<_> = self.partitions.iter().take(32).map(|partition| partition.number.to_string()).collect();
        let there = if there.is_empty() { "none".to_owned() } else { there.join(", ") };
        Err(Error::new(Kind::NotFound, format!("partition {wanted} (there are: {there})")))
    }

    /// Adds what can be said of partitions only when all of them are known.
    fn check(mut self, device_bytes: u64) -> Self {
        let mut spans = Vec::new();
        for partition in &self.partitions {
            let (number, end) = (partition.number, partition.start_byte.saturating_add(partition.size_bytes));
            if partition.start_byte >= device_bytes {
                self.problems.push(Problem::StartsBeyondEnd { number, device_bytes });
            } else if end > device_bytes {
                self.problems.push(Problem::EndsBeyondEnd { number, device_bytes });
            }
            if partition.start_byte == 0 {
                self.problems.push(Problem::HoldsTable { number });
            }
            if partition.role != Role::Extended {
                spans.push((partition.start_byte, end, number));
            }
        }
        spans.sort_unstable();
        // The furthest end so far, and whose it is.
        let mut furthest: Option<(u64, u32)> = None;
        for (start, end, number) in spans {
            if let Some((_, other)) = furthest.filter(|(furthest_end, _)| start < *furthest_end) {
                self.problems.push(Problem::Overlap(other.min(number), other.max(number)));
            }
            furthest = furthest.max(Some((end, number)));
        }
        self
    }
}

/// Reads the partition table of a device, if it has one.
///
/// Sectors are those of the device's [`block::Limits::block`]; a GPT is also looked for in sectors of 512, 4096, 2048
/// and 1024 bytes, as an image does not say which disk it was taken from.
///
/// # Errors
/// The failure of the device. What is wrong in a table is in [`Table::problems`].
pub fn read(device: &dyn ReadAt) -> Result<Option<Table>> {
    let block = device.limits().block.clamp(512, 4096);
    let first = read_up_to(device, 0, 512)?;
    let mbr = mbr::read(device, &first, block)?;
    let protects = mbr::protects_gpt(&first);
    let sizes: BTreeSet<(bool, u32)> = [512, 4096, 2048, 1024].into_iter().map(|size| (size != block, size)).collect();
    let mut gpt = None;
    for (_, sector_bytes) in sizes {
        if has(&read_up_to(device, u64::from(sector_bytes), 8)?, 0, gpt::SIGNATURE) {
            gpt = Some(gpt::read(device, sector_bytes)?);
            break;
        }
    }
    if gpt.is_none() && protects {
        gpt = Some(gpt::read(device, block)?);
    }
    Ok(match (gpt, mbr) {
        (Some(Ok(mut gpt)), mbr) if protects => {
            let others = mbr.map(|mut mbr| {
                mbr.partitions.retain(|partition| partition.type_id != "ee");
                mbr
            });
            gpt.shadowed = others.filter(|mbr| !mbr.partitions.is_empty()).map(Box::new);
            if gpt.shadowed.is_some() {
                gpt.problems.push(Problem::HybridMbr);
            }
            Some(gpt)
        }
        (Some(Ok(gpt)), Some(mut mbr)) => {
            mbr.problems.push(Problem::GptNotProtected);
            mbr.shadowed = Some(Box::new(gpt));
            Some(mbr)
        }
        (Some(Err(why)), Some(mut mbr)) if protects => {
            mbr.problems.push(Problem::NoGpt(why));
            Some(mbr)
        }
        (_, mbr) => mbr,
    })
}

/// For fuzzing: reads the table of `data` as 512- and 4096-byte sectors.
pub fn fuzz(data: &[u8]) {
    let device = block::bytes::Bytes(data);
    if let Ok(Some(table)) = read(&device) {
        for partition in &table.partitions {
            let _ = partition.range(device.size());
        }
        for problem in &table.problems {
            let _ = problem.to_string();
        }
    }
    let _ = gpt::read(&device, 4096);
    let first = data.get(..512).unwrap_or_default();
    let _ = mbr::read(&device, first, 4096);
}

#[cfg(test)]
mod tests;
