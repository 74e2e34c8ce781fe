//! What cryptsetup makes, loopbox reads; what loopbox makes, cryptsetup reads.

use block::{BlockDevice as _, Kind, ReadAt as _};
use loopbox_format::luks::{Corrupt, Crypt, Header, Problem, create};
use rig::requires;

use crate::volume::{COST, Folder, PASSPHRASE, content, file, open, quick_create, random, read_all, reader};

/// A key slot that costs little.
const QUICK: [&str; 6] = ["--pbkdf-force-iterations", "4", "--pbkdf-memory", "64", "--pbkdf-parallel", "1"];
/// Reads a volume and writes it again with another key, without a device mapper.
const REENCRYPT: [&str; 4] = ["reencrypt", "--resilience", "none", "--force-offline-reencrypt"];

/// `cryptsetup reencrypt --encrypt` needs no device mapper: plain bytes become a volume with the same bytes in it.
#[test]
fn what_cryptsetup_encrypted_is_read_and_written() {
    requires!("cryptsetup");
    let plain = content(4 << 20, 1);
    for words in [
        &["--cipher", "aes-xts-plain64", "--key-size", "512", "--sector-size", "512"][..],
        &["--cipher", "aes-xts-plain64", "--key-size", "256", "--sector-size", "4096"],
        &["--cipher", "aes-xts-plain64", "--sector-size", "2048", "--pbkdf", "argon2i"],
        &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "256", "--pbkdf", "pbkdf2"],
        &["--cipher", "aes-cbc-essiv:sha256", "--key-size", "128", "--sector-size", "1024"],
        &["--cipher", "aes-cbc-plain64", "--key-size", "192"],
        &["--cipher", "aes-xts-plain", "--key-size", "512"],
    ] {
        let folder = Folder::new();
        let volume = folder.join("volume");
        std::fs::write(&volume, &plain).unwrap();
        std::fs::File::options().write(true).open(&volume).unwrap().set_len(36 << 20).unwrap();
        let quick: &[&str] = if words.contains(&"pbkdf2") { &["--pbkdf-force-iterations", "1000"] } else { &QUICK };
        let encrypt =
            ["reencrypt", "--encrypt", "--type", "luks2", "--reduce-device-size", "32M", "--resilience", "none"];
        folder.cryptsetup(&[&encrypt[..], &["--force-offline-reencrypt"], words, quick].concat(), &[&volume]);
        let device = open(&volume, PASSPHRASE).unwrap();
        assert_eq!(device.size(), 20 << 20, "{words:?}");
        let mut read = vec![0; plain.len()];
        device.read_at(&mut read, 0).unwrap();
        assert!(read == plain, "{words:?}: other bytes");

        // Written here, and read by cryptsetup.
        let mut whole = read_all(&device);
        let written = content(300_000, 2);
        device.write_at(&written, 1_000_001).unwrap();
        whole[1_000_001..1_300_001].copy_from_slice(&written);
        device.flush().unwrap();
        drop(device);
        // cryptsetup decrypts it where it is, with the header moved into a file.
        let header = format!("--header={}", folder.join("header").display());
        folder.cryptsetup(&["reencrypt", "--decrypt", "--force-offline-reencrypt", &header], &[&volume]);
        let decrypted = std::fs::read(&volume).unwrap();
        assert!(decrypted[..whole.len()] == whole, "{words:?}: cryptsetup reads other bytes");
    }
}

/// Parameters of every kind; the volume key is the one that cryptsetup shows.
#[test]
fn headers_of_cryptsetup_give_the_volume_key() {
    requires!("cryptsetup");
    for words in [
        &["--type", "luks1"][..],
        &["--type", "luks1", "--hash", "sha1", "--key-size", "256"],
        &["--type", "luks1", "--hash", "sha512", "--cipher", "aes-cbc-essiv:sha256", "--key-size", "256"],
        &["--type", "luks1", "--hash", "ripemd160", "--cipher", "aes-cbc-plain", "--key-size", "128"],
        &["--type", "luks1", "--hash", "whirlpool"],
        &["--type", "luks2"],
        &["--type", "luks2", "--pbkdf", "argon2i", "--hash", "sha512", "--label", "my disk"],
        &["--type", "luks2", "--pbkdf", "pbkdf2", "--hash", "sha384", "--sector-size", "4096"],
        &["--type", "luks2", "--luks2-metadata-size", "64k", "--luks2-keyslots-size", "512k"],
        &["--type", "luks2", "--keyslot-cipher", "aes-cbc-essiv:sha256", "--keyslot-key-size", "256"],
        &["--type", "luks2", "--key-size", "256", "--offset", "40000"],
    ] {
        let folder = Folder::new();
        let volume = folder.formatted("volume", words);
        let dump = folder.cryptsetup(&["luksDump"], &[&volume]);
        // cryptsetup waits for whoever has it open for writing.
        let device = reader(&volume);
        let header = Header::read(&device).unwrap();
        assert!(header.problems.is_empty(), "{words:?}: {:?}", header.problems);
        assert!(dump.contains(&header.uuid) && header.uuid.len() == 36, "{words:?}: {}", header.uuid);
        assert_eq!(header.version(), if words.contains(&"luks1") { 1 } else { 2 });
        assert_eq!(header.label, if words.contains(&"my disk") { "my disk" } else { "" });
        assert_eq!(header.slots.len(), 1);
        let unlocked = header.unlock(&device, PASSPHRASE, None, &COST).unwrap();
        let key = folder.join("volume-key");
        folder.cryptsetup(&["luksDump", "--dump-volume-key", "--volume-key-file", key.to_str().unwrap()], &[&volume]);
        assert!(std::fs::read(&key).unwrap() == unlocked.key[..], "{words:?}: another volume key");
        assert_eq!(header.key_bytes(), Some(unlocked.key.len()));
        let wrong = header.unlock(&device, b"wrong", None, &COST).unwrap_err();
        assert_eq!(wrong.kind(), Kind::Denied);
        assert_eq!(header.unlock(&device, PASSPHRASE, Some(3), &COST).unwrap_err().kind(), Kind::NotFound);
        Crypt::new(device, &header.segment, &unlocked.key).unwrap();
    }
}

#[test]
fn a_detached_header_opens_its_data() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let (header_file, data) = (folder.join("header"), folder.join("data"));
    std::fs::write(&data, vec![7; 1 << 20]).unwrap();
    let words = ["luksFormat", "--pbkdf", "pbkdf2", "--pbkdf-force-iterations", "1000", "--header"];
    folder.cryptsetup(&[&words[..], &[header_file.to_str().unwrap()]].concat(), &[&data]);
    let of_header = file(&header_file);
    let header = Header::read(&of_header).unwrap();
    let unlocked = header.unlock(&of_header, PASSPHRASE, None, &COST).unwrap();
    let device = Crypt::new(file(&data), &header.segment, &unlocked.key).unwrap();
    assert_eq!(device.size(), 1 << 20);
    device.write_at(b"hello", 0).unwrap();
    assert_eq!(&read_all(&device)[..5], b"hello");
    drop(device);
    assert_eq!(Header::read(&file(&data)).unwrap_err().find(), Some(&Corrupt::NoMagic));
}

#[test]
fn what_loopbox_makes_cryptsetup_opens() {
    requires!("cryptsetup");
    let folder = Folder::new();
    for (cipher, key_bytes, sector_bytes) in
        [("aes-xts-plain64", 64, 4096), ("aes-xts-plain64", 32, 512), ("aes-cbc-essiv:sha256", 32, 512)]
    {
        let volume = folder.join("volume");
        std::fs::File::create(&volume).unwrap().set_len(20 << 20).unwrap();
        let wanted = loopbox_format::luks::Create {
            cipher: cipher.to_owned(),
            key_bytes,
            sector_bytes,
            label: "tea".to_owned(),
            ..quick_create()
        };
        let header = create(&file(&volume), &wanted, PASSPHRASE, &random).unwrap();
        let dump = folder.cryptsetup(&["luksDump"], &[&volume]);
        for line in [format!("UUID:          \t{}", header.uuid), "Label:         \ttea".to_owned()] {
            assert!(dump.contains(&line), "{line}: {dump}");
        }
        for words in [format!("cipher: {cipher}"), format!("sector: {sector_bytes} [bytes]"), "offset: 16777216".into()]
        {
            assert!(dump.contains(&words), "{words}: {dump}");
        }
        assert!(folder.opens(&volume, PASSPHRASE, None));
        assert!(!folder.opens(&volume, b"wrong", None));
        let device = open(&volume, PASSPHRASE).unwrap();
        assert_eq!(device.size(), 4 << 20);
        let plain = content(4 << 20, 3);
        device.write_at(&plain, 0).unwrap();
        drop(device);
        assert!(read_all(&open(&volume, PASSPHRASE).unwrap()) == plain);
        // cryptsetup takes the volume for one that it may encrypt anew.
        folder.cryptsetup(&[&REENCRYPT[..], &QUICK].concat(), &[&volume]);
        assert!(read_all(&open(&volume, PASSPHRASE).unwrap()) == plain, "{cipher}: encrypted anew, other bytes");
    }
}

#[test]
fn the_second_copy_of_the_header_is_taken_where_the_first_is_damaged() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let volume = folder.formatted("volume", &["--type", "luks2"]);
    let good = std::fs::read(&volume).unwrap();
    for at in [0, 7, 9, 300, 449, 4100] {
        let mut bytes = good.clone();
        bytes[at] ^= 0x20;
        std::fs::write(&volume, &bytes).unwrap();
        let header = Header::read(&file(&volume)).unwrap();
        assert!(matches!(header.problems[..], [Problem::PrimaryDamaged(_)]), "byte {at}: {:?}", header.problems);
        header.unlock(&file(&volume), PASSPHRASE, None, &COST).unwrap();
        bytes[(16 << 10) + 449] ^= 1;
        std::fs::write(&volume, &bytes).unwrap();
        assert_eq!(Header::read(&file(&volume)).unwrap_err().kind(), Kind::Corrupt, "byte {at}");
    }
    let mut bytes = good;
    bytes[(16 << 10) + 5000] ^= 1;
    std::fs::write(&volume, &bytes).unwrap();
    let header = Header::read(&file(&volume)).unwrap();
    assert_eq!(header.problems, [Problem::SecondaryDamaged(Corrupt::Checksum)]);
}

#[test]
fn what_is_not_served_is_said_so() {
    requires!("cryptsetup");
    let folder = Folder::new();
    let volume = folder.join("volume");
    std::fs::write(&volume, content(1 << 20, 4)).unwrap();
    std::fs::File::options().write(true).open(&volume).unwrap().set_len(36 << 20).unwrap();
    let words = ["reencrypt", "--encrypt", "--init-only", "--type", "luks2", "--reduce-device-size", "32M"];
    let output = folder.try_cryptsetup(&[&words[..], &["--force-offline-reencrypt"], &QUICK].concat(), &[&volume]);
    if output.status.success() {
        let error = Header::read(&file(&volume)).unwrap_err();
        assert_eq!(error.kind(), Kind::Unsupported, "{error:?}");
        assert!(error.to_string().contains("reencrypt"), "{error:?}");
    } else {
        assert!(rig::text(&output).contains("device-mapper"), "{}", rig::text(&output));
    }
}
