//! Partition tables made by sfdisk, parted and xorriso, read by loopbox and by them, by gptman and by mbrman.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use block::bytes::Bytes;
use loopbox_format::partition::{Problem, Role, Scheme, Table, gpt, read};

const GPT: &str = "label: gpt\nlabel-id: 11223344-5566-7788-99AA-BBCCDDEEFF00\n\
    start=2048, size=1024, type=U, name=\"EFI\u{fc} syst\u{1f600}m\"\n\
    start=4096, size=4096, type=L, name=\"root\", attrs=\"LegacyBIOSBootable,GUID:60\"\n\
    7 : start=10240, size=8, type=S\n";
const MBR: &str = "label: dos\nlabel-id: 0x1234abcd\n\
    1 : start=2048, size=2048, type=c, bootable\n3 : start=8192, size=20480, type=5\n\
    5 : size=1000, type=83\n6 : size=500, type=82\n7 : size=1M, type=8e\n";

fn sfdisk(script: &str, megabytes: u64) -> (rig::Scratch, std::path::PathBuf) {
    let scratch = rig::Scratch::new("table");
    let disk = scratch.join("disk");
    std::fs::File::create(&disk).unwrap().set_len(megabytes << 20).unwrap();
    let mut child = Command::new(rig::which("sfdisk").unwrap())
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
    (scratch, disk)
}

/// The GPT of [`GPT`] by sfdisk, or, as that makes none on a file with sectors of 4096 bytes, the same by gptman.
fn gpt_disk(sector: usize, megabytes: u64) -> (rig::Scratch, std::path::PathBuf) {
    let (scratch, disk) = sfdisk(GPT, megabytes);
    if sector != 512 {
        let peer = gptman::GPT::read_from(&mut std::fs::File::open(&disk).unwrap(), 512).unwrap();
        std::fs::write(&disk, []).unwrap();
        let mut file = std::fs::File::options().read(true).write(true).open(&disk).unwrap();
        file.set_len(megabytes << 20).unwrap();
        let mut new = gptman::GPT::new_from(&mut file, sector as u64, peer.header.disk_guid).unwrap();
        for (number, entry) in peer.iter().filter(|(_, entry)| entry.is_used()) {
            new[number] = entry.clone();
            new[number].starting_lba = entry.starting_lba * 512 / sector as u64;
            new[number].ending_lba = (entry.ending_lba + 1) * 512 / sector as u64 - 1;
        }
        new.write_into(&mut file).unwrap();
        gptman::GPT::write_protective_mbr_into(&mut file, sector as u64).unwrap();
    }
    (scratch, disk)
}

fn table(disk: &Path) -> Table {
    read(&Bytes(&std::fs::read(disk).unwrap())).unwrap().unwrap()
}

/// Compares with `sfdisk --json`.
fn same_as_sfdisk(table: &Table, disk: &Path) {
    let sector = 512;
    let json = rig::run("sfdisk", ["--json", disk.to_str().unwrap()]);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let json = &json["partitiontable"];
    let text = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_lowercase();
    assert_eq!(text(&json["label"]), if table.scheme == Scheme::Gpt { "gpt" } else { "dos" });
    assert_eq!(
        text(&json["id"]).trim_start_matches("0x").replace("00000000", ""),
        table.id.clone().unwrap_or_default()
    );
    let theirs = json["partitions"].as_array().unwrap();
    assert_eq!(theirs.len(), table.partitions.len());
    for (their, our) in theirs.iter().zip(&table.partitions) {
        let node = their["node"].as_str().unwrap();
        let number = node.rsplit(|c: char| !c.is_ascii_digit()).next().unwrap();
        assert_eq!(number, our.number.to_string());
        assert_eq!(their["start"].as_u64().unwrap() * sector, our.start_byte, "{node}");
        assert_eq!(their["size"].as_u64().unwrap() * sector, our.size_bytes, "{node}");
        let kind = text(&their["type"]);
        assert_eq!(if kind.len() == 1 { format!("0{kind}") } else { kind }, our.type_id, "{node}");
        if table.scheme == Scheme::Gpt {
            assert_eq!(text(&their["uuid"]), our.uuid.clone().unwrap(), "{node}");
            assert_eq!(their["name"].as_str().unwrap_or_default(), our.name, "{node}");
        } else {
            assert_eq!(their["bootable"].as_bool().unwrap_or_default(), our.bootable, "{node}");
        }
        assert!(our.type_name.is_some(), "{node}: {}", our.type_id);
    }
}

#[test]
fn gpt_is_read_as_sfdisk_and_gptman_read_it() {
    rig::requires!("sfdisk");
    for sector in [512, 4096] {
        let (_scratch, disk) = gpt_disk(sector as usize, 64);
        let table = table(&disk);
        assert_eq!((table.scheme, table.sector_bytes), (Scheme::Gpt, sector));
        assert_eq!(table.problems, []);
        assert_eq!(table.partitions.iter().map(|p| p.number).collect::<Vec<_>>(), [1, 2, 7]);
        assert!(table.partitions[1].bootable && table.partitions[1].attributes == 1 << 60 | 4);
        if sector == 512 {
            same_as_sfdisk(&table, &disk);
        }
        let peer = gptman::GPT::read_from(&mut std::fs::File::open(&disk).unwrap(), u64::from(sector)).unwrap();
        let theirs: Vec<_> = peer
            .iter()
            .filter(|(_, p)| p.is_used())
            .map(|(n, p)| (n, p.starting_lba * u64::from(sector), p.size().unwrap() * u64::from(sector)))
            .collect();
        let ours: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start_byte, p.size_bytes)).collect();
        assert_eq!(theirs, ours);
        for ((_, their), our) in peer.iter().filter(|(_, p)| p.is_used()).zip(&table.partitions) {
            assert_eq!(their.partition_name.as_str(), our.name);
            assert_eq!(their.attribute_bits, our.attributes);
        }
    }
}

#[test]
fn a_damaged_gpt_is_read_from_its_backup() {
    rig::requires!("sfdisk");
    for sector in [512_usize, 4096] {
        let (_scratch, disk) = gpt_disk(sector, 16);
        let good = std::fs::read(&disk).unwrap();
        let partitions = table(&disk).partitions;
        // A byte of the header; a byte of the entries; the whole first header.
        for (at, len) in [(sector + 0x38, 1), (2 * sector + 60, 1), (sector, sector)] {
            let mut bad = good.clone();
            bad[at..at + len].iter_mut().for_each(|byte| *byte = byte.wrapping_add(1));
            let table = read(&Bytes(&bad)).unwrap().unwrap();
            if len == 1 || sector == 512 {
                assert_eq!(table.partitions, partitions);
                assert!(matches!(table.problems[..], [Problem::PrimaryDamaged(_)]), "{:?}", table.problems);
            }
            let backup = bad.len() - sector;
            bad[backup] ^= 1;
            let table = read(&Bytes(&bad)).unwrap().unwrap();
            assert_eq!(table.scheme, Scheme::Mbr);
            assert!(table.problems.iter().any(|problem| matches!(problem, Problem::NoGpt(_))));
        }
        let mut bad = good.clone();
        let backup = bad.len() - sector;
        bad[backup] ^= 1;
        let table = read(&Bytes(&bad)).unwrap().unwrap();
        assert_eq!(table.problems, [Problem::BackupDamaged(gpt::Corrupt::NoSignature)]);
        // The image has grown: the backup is not in the last sector any more.
        let mut grown = good.clone();
        grown.resize(good.len() + (1 << 20), 0);
        let table = read(&Bytes(&grown)).unwrap().unwrap();
        assert_eq!(table.problems, [Problem::BackupNotAtEnd { sector: (good.len() / sector - 1) as u64 }]);
        // No protective MBR: the kernel sees no table.
        let mut bare = good.clone();
        bare[..512].fill(0);
        assert_eq!(read(&Bytes(&bare)).unwrap(), None);
    }
}

#[test]
fn mbr_is_read_as_sfdisk_parted_and_mbrman_read_it() {
    rig::requires!("sfdisk", "parted");
    let (_scratch, disk) = sfdisk(MBR, 16);
    let table = table(&disk);
    assert_eq!(table.problems, []);
    same_as_sfdisk(&table, &disk);
    assert_eq!(table.partitions[1].role, Role::Extended);
    let parted = rig::run("parted", ["-s", "-m", disk.to_str().unwrap(), "unit", "B", "print"]);
    let theirs: Vec<(u32, u64, u64)> = parted
        .lines()
        .filter(|line| line.starts_with(|c: char| c.is_ascii_digit()))
        .map(|line| {
            let mut fields =
                line.split(':').map(|field| field.trim_end_matches(['B', ';']).parse::<u64>().unwrap_or(0));
            let (number, start, _end) = (fields.next().unwrap(), fields.next().unwrap(), fields.next());
            (number as u32, start, fields.next().unwrap())
        })
        .collect();
    let mut ours: Vec<_> = table.partitions.iter().map(|p| (p.number, p.start_byte, p.size_bytes)).collect();
    ours.sort_unstable();
    assert_eq!(theirs, ours);
    let peer = mbrman::MBR::read_from(&mut std::fs::File::open(&disk).unwrap(), 512).unwrap();
    for our in table.partitions.iter().filter(|p| p.role != Role::Extended) {
        let their = peer.get(our.number as usize).unwrap();
        let start = if our.number < 5 {
            u64::from(their.starting_lba)
        } else {
            // mbrman leaves it counted from the link of the chain.
            let link = peer.iter().find(|(number, _)| *number == our.number as usize);
            link.map(|(_, p)| u64::from(p.starting_lba)).unwrap()
        };
        assert_eq!((start * 512, u64::from(their.sectors) * 512), (our.start_byte, our.size_bytes), "{}", our.number);
    }
}

#[test]
fn empty_tables_are_tables() {
    rig::requires!("sfdisk");
    for label in ["label: dos\n", "label: gpt\n"] {
        let (_scratch, disk) = sfdisk(label, 4);
        let table = table(&disk);
        assert!(table.partitions.is_empty() && table.problems.is_empty() && table.id.is_some(), "{table:?}");
    }
}

#[test]
fn a_hybrid_iso_is_read_as_sfdisk_reads_it() {
    rig::requires!("xorriso", "sfdisk");
    let scratch = rig::Scratch::new("hybrid");
    std::fs::create_dir(scratch.join("tree")).unwrap();
    std::fs::write(scratch.join("tree/a"), vec![7; 100_000]).unwrap();
    std::fs::write(scratch.join("efi.img"), vec![1; 1 << 20]).unwrap();
    let path = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    for (name, options) in [("gpt.iso", &["-appended_part_as_gpt"][..]), ("mbr.iso", &[][..])] {
        let (iso, efi, tree) = (path(name), path("efi.img"), path("tree"));
        let mut args = vec!["-as", "mkisofs", "-quiet", "-o", &iso, "-append_partition", "2", "0xef", &efi];
        args.extend_from_slice(options);
        args.extend_from_slice(&["--protective-msdos-label", &tree]);
        rig::run("xorriso", args);
        let table = table(Path::new(&iso));
        assert_eq!(table.scheme, if options.is_empty() { Scheme::Mbr } else { Scheme::Gpt }, "{table:#?}");
        same_as_sfdisk(&table, Path::new(&iso));
    }
}

#[test]
fn twenty_thousand_broken_tables_are_survived() {
    rig::requires!("sfdisk");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for script in [MBR, GPT] {
        let (_scratch, disk) = sfdisk(script, 16);
        let mut bytes = std::fs::read(&disk).unwrap();
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).collect();
        for round in 0..10_000 {
            let at = places[random() % places.len()] + random() % 8;
            let Some(byte) = bytes.get(at).copied() else { continue };
            bytes[at] = [0, 0xff, 0x7f, random() as u8][random() % 4];
            if script == GPT && round % 2 == 0 {
                // Past the checksum, to what it protects.
                bytes[512 + 16..512 + 20].fill(0);
                let length = usize::try_from(u32::from_le_bytes(bytes[524..528].try_into().unwrap())).unwrap();
                let sum = crc32fast::hash(&bytes[512..512 + length.min(512)]);
                bytes[512 + 16..512 + 20].copy_from_slice(&sum.to_le_bytes());
            }
            let len = if random() % 8 == 0 { random() % bytes.len() } else { bytes.len() };
            loopbox_format::partition::fuzz(&bytes[..len]);
            if round % 4 == 3 {
                bytes[at] = byte;
            }
        }
    }
}

#[test]
fn a_table_that_is_made_is_read_by_all() {
    use loopbox_format::partition::create::{Create, New};
    for scheme in [Scheme::Gpt, Scheme::Mbr] {
        let scratch = rig::Scratch::new("new-table");
        let disk = scratch.join("disk");
        std::fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
        let device = backing::FileBacking::open(&disk, backing::Open::WRITE).unwrap();
        let new = |start: u64, size: u64, name: &str| New {
            start_byte: start << 20,
            size_bytes: size << 20,
            mbr_type: 0x83,
            gpt_type: "0fc63daf-8483-4772-8e79-3d69d8477de4",
            id: 0x1111_2222_3333_4444_8555_6666_7777_0000 + u128::from(start),
            name: name.into(),
        };
        let partitions = vec![new(1, 10, "first ü"), new(20, 43, "")];
        let create = Create { scheme, id: 0xaabb_ccdd_eeff_4011_8022_3344_1234_abcd, partitions };
        create.write(&device).unwrap();
        drop(device);
        let read = table(&disk);
        same_as_sfdisk(&read, &disk);
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        assert_eq!(read.partitions[1].size_bytes, 43 << 20);
        assert!(rig::run("sfdisk", ["--verify", disk.to_str().unwrap()]).contains("No errors detected"));
        // Outside of the disk, or over the table.
        let device = backing::FileBacking::open(&disk, backing::Open::WRITE).unwrap();
        for (start, size) in [(0, 1), (20, 60), (20, 0)] {
            let create = Create { partitions: vec![new(start, size, "")], ..create.clone() };
            assert_eq!(create.write(&device).unwrap_err().kind(), block::Kind::Invalid, "{scheme:?} {start} {size}");
        }
    }
}
