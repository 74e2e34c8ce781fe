//! What is in an image, put together from what the libraries say: container, partition table, file systems, and what
//! can be done with each of them on a machine.

use std::sync::Arc;

use block::layer::Window;
use block::{BlockDevice, Kind, ReadAt as _, Result, Storage};
use format::image::Details;
use format::luks::{Header, Kdf, Slot};
use format::partition::{self, Partition, Role, Table};
use format::probe::{self, Container, Format};
use format::spec::Spec;
use fs::identify::{self, Identity, Usage};
use serde::Serialize;

use crate::stack::{Access, Stack};

/// File systems that loopbox reads without the kernel.
const USER_SPACE: &[&str] = &["vfat", "exfat", "iso9660", "ext2", "ext3", "ext4", "squashfs", "erofs", "udf", "ntfs"];
/// How deep tables inside of partitions are looked for.
const DEPTH_MAX: u32 = 2;
/// The most partitions whose content is looked at.
const CONTENTS_MAX: usize = 256;

/// A device and what is in it.
#[derive(Debug, Serialize)]
pub struct Content {
    /// Bytes.
    pub size_bytes: u64,
    /// What its bytes are wrapped in.
    pub container: Container,
    /// The key slots of an encrypted one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_slots: Option<Vec<KeySlot>>,
    /// The file system that begins at its first byte.
    pub filesystem: Option<Identity>,
    /// The partition table.
    pub table: Option<Table>,
    /// What is in the partitions of the table, in its order.
    pub partitions: Vec<PartitionContent>,
    /// What can be done with it here.
    pub abilities: Vec<Ability>,
    /// More of what the image format's header says.
    pub image: Option<Details>,
}

/// What is in a partition.
#[derive(Debug, Serialize)]
pub struct PartitionContent {
    /// Its number in the table.
    pub number: u32,
    /// What is in it; nothing where it lies behind the end of the device.
    pub content: Option<Content>,
    /// Why it could not be looked at.
    pub error: Option<String>,
}

/// A key slot as it is shown.
#[derive(Debug, Serialize)]
pub struct KeySlot {
    /// Its number.
    pub slot: u32,
    pbkdf: &'static str,
    /// What deriving its key costs.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory_kib: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lanes: Option<u32>,
    iterations: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash: Option<&'static str>,
    /// What its key material is encrypted with.
    pub cipher: String,
    /// Length of that key.
    pub key_bits: usize,
}

impl KeySlot {
    /// Of a slot.
    pub fn of(slot: &Slot) -> Self {
        let (memory_kib, lanes, iterations, hash) = match &slot.kdf {
            Kdf::Pbkdf2 { hash, iterations, .. } => (None, None, *iterations, Some(hash.name())),
            Kdf::Argon2 { time, memory_kib, lanes, .. } => (Some(*memory_kib), Some(*lanes), *time, None),
        };
        Self {
            slot: slot.number,
            pbkdf: slot.kdf.name(),
            memory_kib,
            lanes,
            iterations,
            hash,
            cipher: crate::print::escaped(slot.cipher.name().as_bytes()),
            key_bits: slot.cipher_key_bytes * 8,
        }
    }

    /// `argon2id, 256.0 MiB, 4 passes, 4 lanes`.
    pub fn cost(&self) -> String {
        match (self.memory_kib, self.lanes) {
            (Some(memory), Some(lanes)) => {
                let size = crate::print::size(u64::from(memory) << 10);
                format!("{}, {size}, {} passes, {lanes} lanes", self.pbkdf, self.iterations)
            }
            _ => format!("{} with {}, {} iterations", self.pbkdf, self.hash.unwrap_or_default(), self.iterations),
        }
    }
}

/// What a machine grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Machine {
    /// Whether the user may mount by the kernel.
    pub root: bool,
    /// The file systems of the kernel.
    pub filesystems: Vec<String>,
    /// Whether there is a loop driver that this user can open.
    pub loop_driver: bool,
    /// Whether this user can open /dev/fuse.
    pub fuse: bool,
}

/// Something to do with a device, and whether it works here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Ability {
    /// The command: `ls`, `mount`, `attach`.
    pub command: &'static str,
    /// Whether it works here.
    pub works: bool,
    /// By what it works, or why it does not.
    pub by: String,
}

impl Machine {
    /// This one, for this user.
    pub fn here() -> Self {
        let opens = |path: &str| std::fs::File::options().read(true).write(true).open(path).is_ok();
        let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
        Self {
            root: rustix::process::geteuid().is_root(),
            filesystems: filesystems
                .lines()
                .filter_map(|line| line.split_whitespace().last())
                .map(str::to_owned)
                .collect(),
            loop_driver: opens("/dev/loop-control"),
            fuse: opens("/dev/fuse"),
        }
    }
}

/// What can be done on `machine` with a device that holds this.
pub fn abilities(container: Format, filesystem: Option<&Identity>, machine: &Machine) -> Vec<Ability> {
    let yes = |command, by: String| Ability { command, works: true, by };
    let no = |command, by: String| Ability { command, works: false, by };
    if container == Format::Luks {
        return vec![yes("ls, mount, attach …", "with the word luks behind it: `IMAGE,luks`".to_owned())];
    }
    if container != Format::Raw {
        return vec![no("open", format!("{} is recognised, and not read yet", container.name()))];
    }
    let mut found = Vec::new();
    if let Some(filesystem) = filesystem.filter(|filesystem| filesystem.usage == Usage::Filesystem) {
        let name = filesystem.name;
        // The kernel's ext4 driver serves its elders, and that of FAT has two names.
        let in_kernel = machine.filesystems.iter().any(|known| {
            known == name
                || (matches!(name, "ext2" | "ext3") && known == "ext4")
                || (name == "ntfs" && known == "ntfs3")
        });
        let in_user_space = USER_SPACE.contains(&name);
        let reads = "ls, tree, cat, cp, tar";
        found.push(if in_user_space {
            yes(reads, "in user space, without privilege".to_owned())
        } else {
            no(reads, format!("{name} is recognised, and not read yet"))
        });
        found.push(match (in_kernel, in_user_space) {
            (true, _) if machine.root && machine.loop_driver => yes("mount", format!("by the kernel's {name}")),
            (_, true) if machine.fuse && fs::is_written(name) => yes("mount", "in user space, through FUSE".to_owned()),
            (_, true) if machine.fuse => yes("mount", "in user space, through FUSE, read only".to_owned()),
            (_, true) => no("mount", "/dev/fuse cannot be opened".to_owned()),
            (true, false) if machine.root => no("mount", "the kernel has no loop driver".to_owned()),
            (true, false) => no("mount", format!("by the kernel's {name}, for root only")),
            (false, false) => no("mount", format!("neither this kernel nor loopbox mounts {name}")),
        });
    }
    found.push(match (machine.root && machine.loop_driver, machine.fuse) {
        (true, _) => yes("attach", "as a loop device of the kernel".to_owned()),
        (false, true) => yes("attach", "as a file served through FUSE".to_owned()),
        (false, false) => no("attach", "neither the loop driver nor /dev/fuse can be opened".to_owned()),
    });
    found
}

/// Looks into what a spec names. Of an image that lies on top of files that may not be opened, only the header is told.
///
/// # Errors
/// Those of opening it.
pub fn describe_spec(spec: &Spec, machine: &Machine) -> Result<Content> {
    let stack = match Stack::open(spec, Access::Read) {
        Err(error) if error.kind() == Kind::NotPermitted => return header_only(spec, &error).ok_or(error),
        other => other?,
    };
    // What is not a part of the file, byte by byte, is nothing for the kernel.
    let user_space = Machine { root: false, loop_driver: false, ..machine.clone() };
    let mut content = describe(&stack.device, if stack.start_byte.is_some() { machine } else { &user_space })?;
    // What is stacked on the image says what it is itself.
    if let Some((container, details)) = stack.image.filter(|_| content.container.format == Format::Raw) {
        content.container = container;
        content.image = Some(details);
    }
    Ok(content)
}

fn header_only(spec: &Spec, error: &block::Error) -> Option<Content> {
    let backing = backing::FileBacking::open(&spec.path, backing::Open::READ).ok()?;
    let container = probe::probe(&backing).ok()?;
    let size_bytes = container.virtual_bytes.unwrap_or(backing.size());
    let storage: Arc<dyn Storage> = Arc::new(backing);
    let image = format::image::details(&storage, container.format).ok();
    let by = crate::print::error_text(error);
    let abilities = vec![Ability { command: "open", works: false, by }];
    Some(Content {
        size_bytes,
        container,
        filesystem: None,
        table: None,
        partitions: vec![],
        abilities,
        key_slots: None,
        image,
    })
}

/// Looks into a device.
///
/// # Errors
/// The failure of the device. What cannot be read of one partition is said there.
pub fn describe(device: &Arc<dyn BlockDevice>, machine: &Machine) -> Result<Content> {
    look(device, machine, DEPTH_MAX)
}

fn look(device: &Arc<dyn BlockDevice>, machine: &Machine, depth: u32) -> Result<Content> {
    let container = probe::probe(device)?;
    let is_raw = container.format == Format::Raw;
    let filesystem = if is_raw { identify::identify(device)? } else { None };
    let table = if is_raw && depth > 0 { partition::read(device)? } else { None };
    // A boot sector may look like a table without entries.
    let table = table.filter(|table| !table.partitions.is_empty() || filesystem.is_none());
    let mut partitions = Vec::new();
    for partition in table.iter().flat_map(|table| &table.partitions).take(CONTENTS_MAX) {
        if partition.role == Role::Extended {
            continue;
        }
        let content = look_inside(device, partition, machine, depth - 1);
        let error = content.as_ref().err().map(|error| crate::print::error_text(error));
        partitions.push(PartitionContent { number: partition.number, content: content.ok(), error });
    }
    let header = if container.format == Format::Luks { Header::read(device).ok() } else { None };
    Ok(Content {
        size_bytes: device.size(),
        key_slots: header.map(|header| header.slots.iter().map(KeySlot::of).collect()),
        abilities: abilities(container.format, filesystem.as_ref(), machine),
        container,
        filesystem,
        table,
        partitions,
        image: None,
    })
}

fn look_inside(device: &Arc<dyn BlockDevice>, partition: &Partition, machine: &Machine, depth: u32) -> Result<Content> {
    let (start, len) = partition.range(device.size())?;
    let window: Arc<dyn BlockDevice> = Arc::new(Window::new(Arc::clone(device), start, len)?);
    // One that begins at byte 0 holds this same table again.
    look(&window, machine, if start == 0 { 0 } else { depth })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(root: bool, fuse: bool) -> Machine {
        Machine { root, filesystems: vec!["ext4".into(), "xfs".into()], loop_driver: root, fuse }
    }

    /// Of a file system with this name: whether each command works, and by what.
    fn of(name: &'static str, machine: &Machine) -> Vec<(bool, String)> {
        let image = match name {
            "xfs" => [b"XFSB".to_vec(), vec![0, 0, 16, 0], vec![0; 4096]].concat(),
            "iso9660" => [vec![0; 32768], b"\x01CD001\x01".to_vec(), vec![0; 8192]].concat(),
            _ => [b"-rom1fs-".to_vec(), vec![0; 4096]].concat(),
        };
        let identity = identify::identify(&block::bytes::Bytes(&image)).unwrap().unwrap();
        assert_eq!(identity.name, name);
        let found = abilities(Format::Raw, Some(&identity), machine);
        found.into_iter().map(|ability| (ability.works, ability.by)).collect()
    }

    #[test]
    fn what_can_be_done_depends_on_the_machine() {
        let works = |name, machine: &Machine| of(name, machine).iter().map(|(works, _)| *works).collect::<Vec<_>>();
        assert_eq!(works("iso9660", &machine(false, true)), [true, true, true]);
        assert_eq!(works("iso9660", &machine(false, false)), [true, false, false]);
        assert_eq!(works("xfs", &machine(true, true)), [false, true, true]);
        assert_eq!(works("xfs", &machine(false, true)), [false, false, true]);
        assert_eq!(works("romfs", &machine(true, true)), [false, false, true]);
        assert_eq!(of("xfs", &machine(true, true))[1].1, "by the kernel's xfs");
        assert_eq!(of("xfs", &machine(false, true))[1].1, "by the kernel's xfs, for root only");
        assert!(of("iso9660", &machine(true, true))[1].1.contains("FUSE"), "the kernel has no iso9660 here");
    }

    #[test]
    fn a_container_that_is_not_read_yet_is_said_to_be_so() {
        let found = abilities(Format::Qed, None, &machine(true, true));
        assert_eq!(found.len(), 1);
        assert!(!found[0].works && found[0].by.contains("qed"));
    }
}
