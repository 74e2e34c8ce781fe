//! What is made here is right for others.

use std::sync::Arc;

use loopbox_fs::fat::{Fat, Format, Options, Type};
use loopbox_fs::testing::conformance;
use loopbox_fs::{FileSystem as _, Writable as _};
use rig::{Scratch, requires};

use crate::image::{KINDS, NOW, copy, fill, open, writable_device};

#[test]
fn every_size_is_accepted_and_can_be_filled() {
    requires!("fsck.fat", "fsck.exfat");
    const MIB: u64 = 1 << 20;
    for (file_system, size, wanted) in [
        (Type::Fat, 64 << 10, "FAT12"),
        (Type::Fat, 1_474_560, "FAT12"),
        (Type::Fat, 4 * MIB, "FAT12"),
        (Type::Fat, 8 * MIB, "FAT12"),
        (Type::Fat, 9 * MIB, "FAT16"),
        (Type::Fat, 16 * MIB + 512, "FAT16"),
        (Type::Fat, 100 * MIB, "FAT16"),
        (Type::Fat, 511 * MIB, "FAT16"),
        (Type::Fat, 512 * MIB, "FAT32"),
        (Type::Fat, 40 * 1024 * MIB, "FAT32"),
        (Type::Fat32, 34 * MIB, "FAT32"),
        (Type::Fat32, 300 * MIB, "FAT32"),
        (Type::ExFat, MIB, "1.0"),
        (Type::ExFat, 10 * MIB, "1.0"),
        (Type::ExFat, 100 * MIB, "1.0"),
        (Type::ExFat, 300 * MIB, "1.0"),
        (Type::ExFat, 40 * 1024 * MIB, "1.0"),
    ] {
        let scratch = Scratch::new("fat-format");
        let image = scratch.join("image");
        std::fs::File::create(&image).unwrap().set_len(size).unwrap();
        let kind = if file_system == Type::ExFat { &KINDS[3] } else { &KINDS[2] };
        let format =
            Format { file_system, label: "A LABEL".into(), serial: 0x1234_5678, time: NOW, ..Format::default() };
        format.make(&*writable_device(&image)).unwrap();
        kind.assert_clean(&image);
        let identity = loopbox_fs::identify::identify(&*writable_device(&image)).unwrap().unwrap();
        assert_eq!(identity.version.as_deref(), Some(wanted), "{file_system:?} of {size} bytes");
        assert_eq!((identity.label.as_str(), identity.uuid.as_str()), ("A LABEL", "1234-5678"));
        let fat = Fat::open_writable(writable_device(&image), Options::default()).unwrap();
        conformance::check(&fat);
        if size > 5 * MIB && size < 400 * MIB {
            fill(&scratch.join("folder"), 20);
            copy(&fat, &scratch.join("folder"), fat.root());
        }
        fat.close().unwrap();
        drop(fat);
        kind.assert_clean(&image);
        assert_eq!(open(&image).label(), "A LABEL");
    }
}

#[test]
fn the_same_description_gives_the_same_bytes() {
    let make = |file_system| {
        let device = Arc::new(loopbox_fs::testing::scratch::Scratch::new(&vec![0xa5; 40 << 20]));
        Format { file_system, serial: 7, ..Format::default() }.make(&*device).unwrap();
        let mut bytes = vec![0; 2 << 20];
        block::ReadAt::read_at(&*device, &mut bytes, 0).unwrap();
        bytes
    };
    for file_system in [Type::Fat, Type::Fat32, Type::ExFat] {
        assert!(make(file_system) == make(file_system));
    }
}

#[test]
fn what_cannot_be_made_is_said() {
    for (file_system, size, label) in [
        (Type::Fat, 1000, ""),
        (Type::Fat32, 20 << 20, ""),
        (Type::ExFat, 1 << 19, ""),
        (Type::Fat, 1 << 20, "twelve chars"),
        (Type::ExFat, 1 << 20, "twelve chars"),
    ] {
        let device = loopbox_fs::testing::scratch::Scratch::new(&vec![0; size]);
        let format = Format { file_system, label: label.into(), ..Format::default() };
        assert_eq!(format.make(&device).unwrap_err().kind(), block::Kind::Invalid, "{file_system:?} {size} {label}");
    }
}
