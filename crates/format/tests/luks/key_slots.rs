//! Keys added and removed, and the power cut meanwhile.

use block::testing::crash::Disk;
use block::{BlockDevice, Kind, ReadAt as _};
use loopbox_format::luks::{Header, create};
use rig::requires;

use crate::volume::{COST, Folder, PASSPHRASE, file, opens, quick, quick_create, random};

#[test]
fn keys_that_are_added_open_and_those_that_are_removed_do_not() {
    requires!("cryptsetup");
    let folder = Folder::new();
    for words in [
        &["--type", "luks1", "--hash", "sha256"][..],
        &["--type", "luks2"],
        &["--type", "luks2", "--luks2-keyslots-size", "520k", "--key-size", "512"],
    ] {
        let volume = folder.formatted("volume", words);
        // cryptsetup waits for whoever has the volume open for writing: it is closed before each of its calls.
        let read = || Header::read(&file(&volume)).unwrap();
        let version = read().version();
        let unlocked = read().unlock(&file(&volume), PASSPHRASE, None, &COST).unwrap();
        for (n, passphrase) in [&b"one"[..], b"two", b""].into_iter().enumerate() {
            let added = read().add_key(&file(&volume), &unlocked, passphrase, &quick(version), &random);
            if words.contains(&"520k") && n > 0 {
                // 520 KiB hold two slots of 252 KiB.
                assert_eq!(added.unwrap_err().kind(), Kind::NoSpace);
                continue;
            }
            let (_, slot) = added.unwrap();
            assert_eq!(slot, n as u32 + 1);
            assert!(folder.opens(&volume, passphrase, Some(slot)), "{words:?}: slot {slot}");
            assert!(folder.opens(&volume, PASSPHRASE, Some(0)), "{words:?}");
            opens(&volume, passphrase).unwrap();
        }
        // One that cryptsetup adds, and one that it removes.
        if !words.contains(&"520k") {
            let key = folder.join("three");
            std::fs::write(&key, "three").unwrap();
            folder
                .cryptsetup(&["luksAddKey", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000"], &[&volume, &key]);
            opens(&volume, b"three").unwrap();
            folder.cryptsetup(&["luksKillSlot"], &[&volume, "2".as_ref()]);
            assert_eq!(opens(&volume, b"two").unwrap_err().kind(), Kind::Denied);
            assert_eq!(read().slots.iter().map(|slot| slot.number).collect::<Vec<_>>(), [0, 1, 3, 4]);
        }
        let remove = |slot, last| read().remove_key(&file(&volume), slot, last, &random);
        remove(1, false).unwrap();
        assert!(!folder.opens(&volume, b"one", None), "{words:?}");
        assert!(folder.opens(&volume, PASSPHRASE, None));
        assert_eq!(remove(1, false).unwrap_err().kind(), Kind::NotFound);
        for slot in read().slots.iter().skip(1) {
            remove(slot.number, false).unwrap();
        }
        assert_eq!(remove(0, false).unwrap_err().kind(), Kind::Invalid);
        let header = remove(0, true).unwrap();
        assert_eq!(header.unlock(&file(&volume), PASSPHRASE, None, &COST).unwrap_err().kind(), Kind::Denied);
        folder.cryptsetup(&["luksDump"], &[&volume]);
    }
}

#[test]
fn every_slot_can_be_filled() {
    let disk = Disk::new(17 << 20, u64::MAX);
    let mut header = create(&disk, &quick_create(), PASSPHRASE, &random).unwrap();
    let unlocked = header.unlock(&disk, PASSPHRASE, None, &COST).unwrap();
    for slot in 1..32 {
        let added;
        (header, added) = header.add_key(&disk, &unlocked, &[slot as u8], &quick(2), &random).unwrap();
        assert_eq!(added, slot);
    }
    let full = header.add_key(&disk, &unlocked, b"x", &quick(2), &random).unwrap_err();
    assert_eq!(full.kind(), Kind::NoSpace);
    header.remove_key(&disk, 17, false, &random).unwrap();
    let header = Header::read(&disk).unwrap();
    let (_, slot) = header.add_key(&disk, &unlocked, b"x", &quick(2), &random).unwrap();
    assert_eq!(slot, 17);
    assert_eq!(Header::read(&disk).unwrap().unlock(&disk, b"x", None, &COST).unwrap().slot, 17);
}

/// Whenever the power fails, the old passphrase opens, and the new one does or is not there yet.
#[test]
fn a_power_cut_while_keys_change_leaves_a_volume_that_opens() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let image = |words: &[&str]| {
        let mut image = std::fs::read(folder.formatted("volume", words)).unwrap();
        // The header and the first slots are all that is looked at.
        image.truncate(2 << 20);
        image
    };
    for words in [&["--type", "luks1", "--hash", "sha256"][..], &["--type", "luks2"]] {
        // No data: the header and the slots are what is written.
        let image = image(words);
        for remove in [false, true] {
            for cut in 0.. {
                let disk = Disk::new(image.len() as u64, u64::MAX);
                disk.write_at(&image, 0).unwrap();
                disk.flush().unwrap();
                let header = Header::read(&disk).unwrap();
                let unlocked = header.unlock(&disk, PASSPHRASE, None, &COST).unwrap();
                let (header, _) =
                    header.add_key(&disk, &unlocked, b"first", &quick(header.version()), &random).unwrap();
                disk.cut_after(cut);
                let ended = if remove {
                    header.remove_key(&disk, 1, false, &random).map(drop)
                } else {
                    header.add_key(&disk, &unlocked, b"new", &quick(header.version()), &random).map(drop)
                };
                for seed in 0..6 {
                    let disk = disk.after_crash(seed);
                    let when = format!("{words:?}, {cut} writes, seed {seed}, remove {remove}");
                    let header = Header::read(&disk).unwrap_or_else(|error| panic!("{when}: {error:?}"));
                    let opens = |passphrase: &[u8]| header.unlock(&disk, passphrase, None, &COST).is_ok();
                    assert!(opens(PASSPHRASE), "{when}");
                    assert!(remove || opens(b"first"), "{when}");
                    assert!(ended.is_err() || opens(b"first") != remove, "{when}");
                    assert!(ended.is_err() || remove || opens(b"new"), "{when}");
                    // It can be changed further.
                    if seed == 0 {
                        header.add_key(&disk, &unlocked, b"later", &quick(header.version()), &random).unwrap();
                    }
                }
                if ended.is_ok() {
                    assert!(cut > 2, "{cut} writes and flushes");
                    break;
                }
            }
        }
    }
}

#[test]
fn a_device_that_is_too_small_or_wishes_without_sense_are_refused() {
    let disk = Disk::new(1 << 20, u64::MAX);
    assert_eq!(create(&disk, &quick_create(), b"x", &random).unwrap_err().kind(), Kind::NoSpace);
    let disk = Disk::new(17 << 20, u64::MAX);
    let refused = |change: fn(&mut loopbox_format::luks::Create), kind| {
        let mut wanted = quick_create();
        change(&mut wanted);
        assert_eq!(create(&disk, &wanted, b"x", &random).unwrap_err().kind(), kind);
    };
    refused(|wanted| wanted.sector_bytes = 3000, Kind::Invalid);
    refused(|wanted| wanted.sector_bytes = 8192, Kind::Invalid);
    refused(|wanted| wanted.key_bytes = 63, Kind::Unsupported);
    refused(|wanted| wanted.key_bytes = 0, Kind::Unsupported);
    refused(|wanted| wanted.cipher = "cipher_null-ecb".to_owned(), Kind::Unsupported);
    refused(|wanted| wanted.label = "x".repeat(48), Kind::NameTooLong);
    assert_eq!(disk.events(), 0, "nothing was written");
    assert_eq!(disk.size(), 17 << 20);
}
