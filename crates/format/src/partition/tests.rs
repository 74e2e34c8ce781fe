#![allow(clippy::arithmetic_side_effects, clippy::type_complexity)]

use block::bytes::Bytes;

use super::*;

const SECTORS: usize = 4096;

/// A device of 2 MiB with these MBR entries in these sectors.
fn mbr_device(links: &[(usize, &[(u8, u32, u32)])]) -> Vec<u8> {
    let mut disk = vec![0; SECTORS * 512];
    disk[0x1b8..0x1bc].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
    for (sector, entries) in links {
        let sector = &mut disk[sector * 512..][..512];
        for (entry, (kind, start, sectors)) in sector[0x1be..].chunks_mut(16).zip(*entries) {
            entry[4] = *kind;
            entry[8..12].copy_from_slice(&start.to_le_bytes());
            entry[12..16].copy_from_slice(&sectors.to_le_bytes());
        }
        sector[510..].copy_from_slice(&[0x55, 0xaa]);
    }
    disk
}

fn table(disk: &[u8]) -> Table {
    read(&Bytes(disk)).unwrap().unwrap()
}

fn numbers(table: &Table) -> Vec<(u32, u64, u64)> {
    table.partitions.iter().map(|p| (p.number, p.start_byte / 512, p.size_bytes / 512)).collect()
}

#[test]
fn logical_partitions_are_counted_from_five() {
    let disk = mbr_device(&[
        (0, &[(0x83, 64, 64), (0, 0, 0), (0x05, 1024, 1024)]),
        (1024, &[(0x83, 8, 100), (0x05, 256, 256)]),
        (1280, &[(0x82, 8, 100)]),
    ]);
    let table = table(&disk);
    assert_eq!(numbers(&table), [(1, 64, 64), (3, 1024, 1024), (5, 1032, 100), (6, 1288, 100)]);
    assert_eq!(table.partitions[3].uuid.as_deref(), Some("1234abcd-06"));
    assert_eq!(table.partitions[3].type_name, Some("Linux swap"));
    assert!(table.problems.is_empty());
}

#[test]
fn a_chain_that_loops_or_breaks_ends() {
    let disk = mbr_device(&[
        (0, &[(0x05, 1024, 1024)]),
        (1024, &[(0x83, 8, 100), (0x05, 256, 256)]),
        (1280, &[(0x83, 8, 100), (0x05, 0, 256)]),
    ]);
    let looping = table(&disk);
    assert_eq!(looping.partitions.len(), 3);
    assert_eq!(looping.problems, [Problem::ChainLoops { sector: 1024 }]);
    let disk = mbr_device(&[(0, &[(0x05, 1024, 1024)]), (1024, &[(0x83, 8, 100), (0x05, 0x7fff_ffff, 256)])]);
    let broken = table(&disk);
    assert_eq!(broken.partitions.len(), 2);
    assert_eq!(broken.problems, [Problem::ChainBroken { sector: 0x8000_03ff }]);
}

#[test]
fn partitions_behind_the_end_are_listed_and_not_trusted() {
    let disk = mbr_device(&[(0, &[(0x83, 4000, 1000), (0x83, 5000, 5)])]);
    let table = table(&disk);
    let device_bytes = disk.len() as u64;
    assert_eq!(
        table.problems,
        [Problem::EndsBeyondEnd { number: 1, device_bytes }, Problem::StartsBeyondEnd { number: 2, device_bytes }]
    );
    assert_eq!(table.partitions[0].range(device_bytes).unwrap(), (4000 * 512, 96 * 512));
    assert_eq!(table.partitions[1].range(device_bytes).unwrap_err().kind(), Kind::OutOfRange);
}

#[test]
fn boot_sectors_are_not_tables() {
    // Of a file system: a jump, a plausible BPB, text where entries would be.
    let mut disk = mbr_device(&[(0, &[])]);
    disk[..3].copy_from_slice(&[0xeb, 0x3c, 0x90]);
    disk[11..13].copy_from_slice(&512_u16.to_le_bytes());
    (disk[13], disk[14], disk[16], disk[21]) = (4, 1, 2, 0xf8);
    assert_eq!(read(&Bytes(&disk)).unwrap(), None);
    disk[0x1be..0x1fe].copy_from_slice(&b"Not a bootable disk. Insert one.".repeat(2));
    assert_eq!(read(&Bytes(&disk)).unwrap(), None);
    disk[0x1be] = 0;
    disk[0x1ce] = 0x80;
    disk[0x1de] = 0;
    disk[0x1ee] = 0;
    assert_eq!(read(&Bytes(&disk)).unwrap(), None, "flags may be right by chance");
    // The same with a table that makes sense in every entry.
    disk[0x1be..0x1fe].fill(0);
    disk[0x1c2] = 0x0c;
    disk[0x1c6..0x1ca].copy_from_slice(&64_u32.to_le_bytes());
    disk[0x1ca..0x1ce].copy_from_slice(&1000_u32.to_le_bytes());
    assert_eq!(numbers(&table(&disk)), [(1, 64, 1000)]);
    // Nothing but the signature, as a kernel image or a boot ROM has it.
    let mut disk = mbr_device(&[(0, &[])]);
    disk[0x1b8..0x1bc].fill(0);
    assert_eq!(read(&Bytes(&disk)).unwrap(), None);
    assert_eq!(read(&Bytes(&[])).unwrap(), None);
    assert_eq!(read(&Bytes(&[0x55; 511])).unwrap(), None);
}

#[test]
fn a_hybrid_image_has_overlapping_partitions_from_sector_0() {
    let disk = mbr_device(&[(0, &[(0x17, 0, 4096), (0xef, 100, 200)])]);
    let table = table(&disk);
    assert_eq!(numbers(&table), [(1, 0, 4096), (2, 100, 200)]);
    assert_eq!(table.problems, [Problem::HoldsTable { number: 1 }, Problem::Overlap(1, 2)]);
}

#[test]
fn partitions_are_found_by_what_they_are_called() {
    let table = table(&mbr_device(&[(0, &[(0x83, 64, 64), (0x83, 128, 64)])]));
    let identify = |p: &Partition| Ok((format!("label {}", p.number), String::new()));
    let find = |selector| table.find(&selector, identify).map(|p| p.number).map_err(|error| error.to_string());
    assert_eq!(find(Selector::Number(2)), Ok(2));
    assert_eq!(find(Selector::PartUuid("1234ABCD-02".into())), Ok(2));
    assert_eq!(find(Selector::Label("label 1".into())), Ok(1));
    assert_eq!(find(Selector::Number(7)), Err("partition 7 (there are: 1, 2)".into()));
}
