//! Are the refcounts right: every cluster that something points to is counted as often, and no other.

use std::collections::{BTreeSet, HashMap};
use std::fmt;

use block::bytes::{be_u32, be_u64, read_vec};
use block::{Error, Kind, Result, Storage};
use serde::Serialize;

use super::Corrupt;
use super::header::{AUTOCLEAR_BITMAPS, DIRTY, Header};
use super::refcount::Refcounts;
use super::snapshot;
use super::table::{COMPRESSED, COPIED, Entry, Geometry, OFFSET, Place, words};

/// Problems that are listed one by one.
const PROBLEMS_MAX: usize = 1000;
/// Counts that are kept together, and how many such groups there may be: 64 million clusters in use.
const GROUP: u64 = 4096;
const GROUPS_MAX: usize = 16384;

/// What may be mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Repair {
    /// Nothing: only look.
    Nothing,
    /// Counts that are too high.
    Leaks,
    /// Counts that are too low, and marks of ownership, too.
    All,
}

/// What is wrong at one place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// A cluster is counted more often than it is used.
    Leak {
        /// Its number.
        cluster: u64,
        /// How often it is counted.
        counted: u64,
        /// How often it is used.
        used: u64,
    },
    /// A cluster is used more often than it is counted.
    TooLow {
        /// Its number.
        cluster: u64,
        /// How often it is counted.
        counted: u64,
        /// How often it is used.
        used: u64,
    },
    /// An entry says that its cluster belongs to it alone, and that is not so; or the other way round.
    Mark {
        /// The entry, which names the cluster.
        offset: u64,
    },
    /// Something points behind the end of the file, or into the midst of a cluster.
    Pointer {
        /// What points.
        from: &'static str,
        /// Where to.
        offset: u64,
    },
    /// A table is pointed to more than once.
    Twice {
        /// Where it is.
        offset: u64,
    },
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Leak { cluster, counted, used } => {
                write!(f, "leak: cluster {cluster} is counted {counted} times, used {used} times")
            }
            Self::TooLow { cluster, counted, used } => {
                write!(f, "corrupt: cluster {cluster} is counted {counted} times, used {used} times")
            }
            Self::Mark { offset } => write!(f, "corrupt: wrong mark of ownership of the cluster at {offset:#x}"),
            Self::Pointer { from, offset } => write!(f, "corrupt: {from} points to {offset:#x}"),
            Self::Twice { offset } => write!(f, "corrupt: the table at {offset:#x} is pointed to twice"),
        }
    }
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Report {
    /// Clusters of the disk, used or not.
    pub total_clusters: u64,
    /// Those that have a place in the file.
    pub allocated_clusters: u64,
    /// Those of them that are compressed.
    pub compressed_clusters: u64,
    /// Where the last cluster in use ends, bytes.
    pub image_end_bytes: u64,
    /// Clusters that are counted more often than they are used.
    pub leaks: u64,
    /// All that is worse.
    pub corruptions: u64,
    /// Leaks that were mended.
    pub leaks_fixed: u64,
    /// What is worse and was mended.
    pub corruptions_fixed: u64,
    /// The first problems, one by one.
    #[serde(serialize_with = "as_text")]
    pub problems: Vec<Problem>,
}

fn as_text<S: serde::Serializer>(problems: &[Problem], serializer: S) -> std::result::Result<S::Ok, S::Error> {
    serializer.collect_seq(problems.iter().map(ToString::to_string))
}

impl Report {
    /// Whether nothing is wrong, or nothing is any more.
    pub fn is_good(&self) -> bool {
        self.leaks == self.leaks_fixed && self.corruptions == self.corruptions_fixed
    }

    fn note(&mut self, problem: Problem) {
        match problem {
            Problem::Leak { .. } => self.leaks = self.leaks.saturating_add(1),
            _ => self.corruptions = self.corruptions.saturating_add(1),
        }
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        }
    }
}

/// How often clusters are used.
#[derive(Default)]
struct Used {
    groups: HashMap<u64, Box<[u32]>>,
    last: u64,
}

impl Used {
    fn add(&mut self, cluster: u64) -> Result<()> {
        if !self.groups.contains_key(&(cluster / GROUP)) {
            if self.groups.len() >= GROUPS_MAX {
                return Err(Error::new(Kind::Limit, "an image with more clusters in use than can be checked"));
            }
            self.groups.insert(cluster / GROUP, vec![0; GROUP as usize].into());
        }
        if let Some(count) = self.groups.get_mut(&(cluster / GROUP)).and_then(|g| g.get_mut((cluster % GROUP) as usize))
        {
            *count = count.saturating_add(1);
        }
        self.last = self.last.max(cluster.saturating_add(1));
        Ok(())
    }

    fn get(&self, cluster: u64) -> u64 {
        let group = self.groups.get(&(cluster / GROUP));
        group.and_then(|group| group.get((cluster % GROUP) as usize)).map_or(0, |count| u64::from(*count))
    }

    fn clusters(&self) -> Vec<u64> {
        let mut all = Vec::new();
        for (group, counts) in &self.groups {
            let clusters = (group.saturating_mul(GROUP)..).zip(counts);
            all.extend(clusters.filter(|(_, count)| **count > 0).map(|(cluster, _)| cluster));
        }
        all.sort_unstable();
        all
    }
}

struct Checker<'a> {
    storage: &'a dyn Storage,
    header: &'a Header,
    geometry: Geometry,
    used: Used,
    report: Report,
}

impl Checker<'_> {
    /// Counts the clusters of `len` bytes at `offset`; false where they are not in the file.
    fn add(&mut self, from: &'static str, offset: u64, len: u64, aligned: bool) -> Result<bool> {
        let inside = offset < self.storage.size();
        if !inside || aligned && self.geometry.within(offset) != 0 {
            self.report.note(Problem::Pointer { from, offset });
            return Ok(false);
        }
        let last = self.geometry.index(offset.saturating_add(len.saturating_sub(1)));
        for cluster in self.geometry.index(offset)..=last.min(self.geometry.index(self.storage.size())) {
            self.used.add(cluster)?;
        }
        Ok(true)
    }

    fn table_words(&self, offset: u64, entries: u64) -> Result<Vec<u64>> {
        let len = usize::try_from(entries.saturating_mul(8)).map_err(|_| Corrupt::Header)?;
        let bytes = read_vec(&self.storage, offset, len).map_err(|error| Corrupt::Truncated("a table").with(error))?;
        Ok(words(&bytes).collect())
    }

    fn entries(&self, offset: u64) -> Result<Vec<Entry>> {
        let words = self.table_words(offset, self.geometry.cluster() / 8)?;
        Ok(if self.geometry.extended {
            words.as_chunks().0.iter().map(|[word, sub]| Entry { word: *word, sub: *sub }).collect()
        } else {
            words.into_iter().map(|word| Entry { word, sub: 0 }).collect()
        })
    }

    /// Counts all that an L1 table leads to.
    fn add_l1(&mut self, offset: u64, entries: u64, active: bool) -> Result<()> {
        if entries == 0 || !self.add("the header", offset, entries.saturating_mul(8), true)? {
            return Ok(());
        }
        let mut seen = BTreeSet::new();
        for l1 in self.table_words(offset, entries)? {
            let table = l1 & OFFSET;
            if table == 0 || !self.add("an L1 entry", table, self.geometry.cluster(), true)? {
                continue;
            }
            if !seen.insert(table) {
                self.report.note(Problem::Twice { offset: table });
                continue;
            }
            let found = match self.entries(table) {
                Err(error) if error.kind() == Kind::Corrupt => {
                    self.report.note(Problem::Pointer { from: "an L1 entry", offset: table });
                    continue;
                }
                found => found?,
            };
            for entry in found {
                self.add_entry(entry, active)?;
            }
        }
        Ok(())
    }

    fn add_entry(&mut self, entry: Entry, active: bool) -> Result<()> {
        let allocated = if entry.word & COMPRESSED != 0 {
            let Ok(Place::Compressed(packed)) = entry.place(self.geometry, 0) else { return Ok(()) };
            if active {
                self.report.compressed_clusters = self.report.compressed_clusters.saturating_add(1);
            }
            self.add("a compressed L2 entry", packed.host, packed.len, false)?
        } else {
            let host = entry.word & OFFSET;
            host != 0 && self.add("an L2 entry", host, self.geometry.cluster(), true)?
        };
        if allocated && active {
            self.report.allocated_clusters = self.report.allocated_clusters.saturating_add(1);
        }
        Ok(())
    }

    /// Counts all that is in the image.
    fn add_all(&mut self, counts: &Refcounts) -> Result<()> {
        let header = self.header;
        self.add("the image", 0, self.geometry.cluster(), true)?;
        self.add_l1(header.l1_offset, header.l1_entries, true)?;
        let (snapshots, len) = snapshot::read_with_end(&self.storage, header)?;
        if len > 0 {
            self.add("the header", header.snapshots_offset, len, true)?;
        }
        for snapshot in snapshots {
            self.add_l1(snapshot.l1_offset, snapshot.l1_entries, false)?;
        }
        if let Some((offset, len)) = header.encryption {
            self.add("the encryption header", offset, len, true)?;
        }
        if header.autoclear & AUTOCLEAR_BITMAPS != 0
            && let Some((offset, len)) = header.bitmap_directory
        {
            self.add_bitmaps(offset, len)?;
        }
        let (table, table_bytes, blocks) = counts.parts();
        self.add("the header", table, table_bytes, true)?;
        for block in blocks {
            self.add("the refcount table", block, self.geometry.cluster(), true)?;
        }
        Ok(())
    }

    /// Counts the bitmap directory, the tables it names, and what these name.
    fn add_bitmaps(&mut self, offset: u64, len: u64) -> Result<()> {
        if len > 64 << 20 || !self.add("the bitmap extension", offset, len, true)? {
            return Ok(());
        }
        let directory = read_vec(&self.storage, offset, usize::try_from(len).unwrap_or_default())
            .map_err(|error| Corrupt::Truncated("the bitmap directory").with(error))?;
        let mut at = 0_usize;
        for _ in 0..self.header.bitmaps {
            let entry = directory.get(at..).unwrap_or_default();
            let (Some(table), Some(entries)) = (be_u64(entry, 0), be_u32(entry, 8)) else { break };
            let lens = be_u32(entry, 16).unwrap_or_default() as usize & 0xffff;
            let extra = be_u32(entry, 20).unwrap_or_default() as usize;
            let entries = u64::from(entries);
            if entries <= 4 << 20 && self.add("a bitmap", table, entries.saturating_mul(8), true)? {
                for word in self.table_words(table, entries)? {
                    if word & OFFSET != 0 {
                        self.add("a bitmap table", word & OFFSET, self.geometry.cluster(), true)?;
                    }
                }
            }
            at = at.saturating_add(24).saturating_add(extra).saturating_add(lens).next_multiple_of(8);
        }
        Ok(())
    }

    /// Compares the marks of ownership of the disk's own tables with the counts; mends them.
    fn marks(&mut self, counts: &mut Refcounts, mend: bool) -> Result<()> {
        let (l1_offset, entries) = (self.header.l1_offset, self.header.l1_entries);
        let stride: u64 = if self.geometry.extended { 16 } else { 8 };
        let mut wrong: Vec<(u64, u64)> = Vec::new();
        let l1 = self.table_words(l1_offset, entries)?;
        for (n, word) in (0_u64..).zip(l1) {
            let table = word & OFFSET;
            if table == 0 || table >= self.storage.size() || self.geometry.within(table) != 0 {
                continue;
            }
            let at = l1_offset.saturating_add(n.saturating_mul(8));
            self.mark(counts, word, table, at, &mut wrong)?;
            let found = match self.entries(table) {
                Err(error) if error.kind() == Kind::Corrupt => continue,
                found => found?,
            };
            for (n, entry) in (0_u64..).zip(found) {
                let host = entry.word & OFFSET;
                if entry.word & COMPRESSED != 0 || host == 0 || host >= self.storage.size() {
                    continue;
                }
                self.mark(counts, entry.word, host, table.saturating_add(n.saturating_mul(stride)), &mut wrong)?;
            }
        }
        if mend {
            for (at, word) in wrong {
                self.storage.write_at(&word.to_be_bytes(), at)?;
                self.report.corruptions_fixed = self.report.corruptions_fixed.saturating_add(1);
            }
            self.storage.flush()?;
        }
        Ok(())
    }

    fn mark(
        &mut self,
        counts: &mut Refcounts,
        word: u64,
        host: u64,
        at: u64,
        wrong: &mut Vec<(u64, u64)>,
    ) -> Result<()> {
        let own = counts.get(self.storage, self.geometry.index(host))? == 1;
        if own != (word & COPIED != 0) {
            self.report.note(Problem::Mark { offset: host });
            wrong.push((at, word ^ COPIED));
        }
        Ok(())
    }
}

/// Checks an image, and mends what `repair` allows.
///
/// # Errors
/// [`Kind::Corrupt`] where the header or a main table cannot be read at all; [`Kind::ReadOnly`] where something is to be
/// mended in what is only read; the failure of the storage.
pub fn check(storage: &dyn Storage, repair: Repair) -> Result<Report> {
    let header = Header::read(&storage)?;
    let geometry = Geometry::of(&header);
    let mut counts = Refcounts::read(storage, &header)?;
    let mut checker = Checker { storage, header: &header, geometry, used: Used::default(), report: Report::default() };
    checker.report.total_clusters = header.size.div_ceil(geometry.cluster());
    checker.add_all(&counts)?;
    if repair == Repair::All {
        // A block of counts that is not in the file is none.
        for block in counts.parts().2 {
            if block >= storage.size() || geometry.within(block) != 0 {
                counts.drop_block(block);
                checker.report.corruptions_fixed = checker.report.corruptions_fixed.saturating_add(1);
            }
        }
    }
    compare(&mut checker, &mut counts, repair)?;
    if repair != Repair::Nothing {
        write(storage, &mut counts)?;
    }
    checker.marks(&mut counts, repair == Repair::All)?;
    checker.report.image_end_bytes = geometry.start(checker.used.last);
    if repair == Repair::All && checker.report.is_good() && header.version >= 3 && header.dirty {
        storage.write_at(&(header.incompatible & !DIRTY).to_be_bytes(), 72)?;
        storage.flush()?;
    }
    Ok(checker.report)
}

fn compare(checker: &mut Checker<'_>, counts: &mut Refcounts, repair: Repair) -> Result<()> {
    let storage = checker.storage;
    for cluster in checker.used.clusters() {
        let (counted, used) = (counts.get(storage, cluster)?, checker.used.get(cluster));
        if counted < used {
            checker.report.note(Problem::TooLow { cluster, counted, used });
            if repair == Repair::All {
                counts.set(storage, cluster, used)?;
                checker.report.corruptions_fixed = checker.report.corruptions_fixed.saturating_add(1);
            }
        }
    }
    for (first, end) in counts.counted() {
        for cluster in first..end {
            let (counted, used) = (counts.get(storage, cluster)?, checker.used.get(cluster));
            if counted > used {
                // What was made while mending is in use, of course.
                if repair == Repair::All && counted == 1 && counts.parts().2.contains(&checker.geometry.start(cluster))
                {
                    continue;
                }
                checker.report.note(Problem::Leak { cluster, counted, used });
                if repair != Repair::Nothing {
                    counts.set(storage, cluster, used)?;
                    checker.report.leaks_fixed = checker.report.leaks_fixed.saturating_add(1);
                }
            }
        }
    }
    Ok(())
}

/// Writes the counts.
fn write(storage: &dyn Storage, counts: &mut Refcounts) -> Result<()> {
    let writes = counts.take_dirty();
    for (offset, bytes) in &writes.blocks {
        storage.write_at(bytes, *offset)?;
    }
    storage.flush()?;
    for (offset, bytes) in writes.table.iter().chain(&writes.header) {
        storage.write_at(bytes, *offset)?;
        storage.flush()?;
    }
    Ok(())
}

/// Counts everything anew, for an image whose writer did not get to do it (lazy refcounts).
///
/// # Errors
/// [`Kind::Corrupt`] where that does not suffice.
pub(super) fn count_anew(storage: &dyn Storage, header: &Header) -> Result<()> {
    let report = check(storage, Repair::All)?;
    if report.is_good() && header.dirty {
        return Ok(());
    }
    let first = report.problems.first().map(ToString::to_string).unwrap_or_default();
    Err(Error::new(Kind::Corrupt, format!("qcow2 whose refcounts cannot be made right: {first}")))
}
