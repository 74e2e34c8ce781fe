//! Containers made by qemu-img, cryptsetup and compressors, told by loopbox and by `qemu-img info`.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use block::bytes::Bytes;
use loopbox_format::probe::{Container, Format, fuzz, probe};

fn make(line: &str) -> (rig::Scratch, Vec<u8>) {
    let scratch = rig::Scratch::new("probe");
    let disk = scratch.join("disk");
    rig::run_command(rig::User::Myself.command("sh").args(["-ec", line]).env("D", &disk));
    let bytes = std::fs::read(&disk).unwrap();
    (scratch, bytes)
}

fn told(line: &str) -> Container {
    probe(&Bytes(&make(line).1)).unwrap()
}

#[test]
fn image_formats_are_as_qemu_img_says() {
    rig::requires!("qemu-img");
    for (format, name, options) in [
        (Format::Qcow2, "qcow2", ""),
        (Format::Qcow2, "qcow2", "-o compat=0.10,cluster_size=4096"),
        (Format::Qed, "qed", ""),
        (Format::Vhd, "vpc", "-o force_size=on"),
        (Format::Vhd, "vpc", "-o subformat=fixed,force_size=on"),
        (Format::Vhdx, "vhdx", ""),
        (Format::Vhdx, "vhdx", "-o block_size=2M,subformat=fixed"),
        (Format::Vmdk, "vmdk", ""),
        (Format::Vmdk, "vmdk", "-o subformat=streamOptimized"),
        (Format::Vdi, "vdi", ""),
        (Format::Parallels, "parallels", ""),
    ] {
        let (scratch, bytes) = make(&format!("qemu-img create -q -f {name} {options} $D 12M"));
        let disk = scratch.join("disk");
        let info = rig::run("qemu-img", ["info", "-f", name, "--output=json", disk.to_str().unwrap()]);
        let info: serde_json::Value = serde_json::from_str(&info).unwrap();
        let found = probe(&Bytes(&bytes)).unwrap();
        assert_eq!(found.format, format, "{name} {options}");
        assert_eq!(found.virtual_bytes, info["virtual-size"].as_u64(), "{name} {options}");
        if let (Some(cluster), true) = (info["cluster-size"].as_u64(), name != "vpc") {
            assert_eq!(found.cluster_bytes, Some(cluster), "{name} {options}");
        }
    }
    let line = "qemu-img create -q -f qcow2 $D.base 1M; qemu-img create -q -f qcow2 -b $D.base -F qcow2 $D";
    let backing = told(line).backing_file.unwrap();
    assert!(backing.ends_with("/disk.base"), "{backing}");
}

#[test]
fn luks_headers_are_as_cryptsetup_says() {
    rig::requires!("cryptsetup");
    for (version, options, cipher) in [
        (1, "--type luks1 -c aes-cbc-essiv:sha256 -s 128", "aes-cbc-essiv:sha256"),
        (2, "--type luks2 --label 'my label'", "aes-xts-plain64"),
    ] {
        let line = format!(
            "truncate -s 20M $D; printf x | cryptsetup luksFormat -q {options} --pbkdf pbkdf2 --pbkdf-force-iterations 1000 \
             --uuid 6ba7b810-9dad-11d1-80b4-00c04fd430c8 $D -"
        );
        let found = told(&line);
        assert_eq!((found.format, found.version), (Format::Luks, Some(version)));
        assert_eq!(found.uuid.as_deref(), Some("6ba7b810-9dad-11d1-80b4-00c04fd430c8"));
        assert_eq!(found.variant.as_deref(), Some(cipher));
        assert_eq!(found.label.as_deref(), (version == 2).then_some("my label"));
    }
}

#[test]
fn compressed_files_are_known() {
    rig::requires!("gzip", "xz", "zstd", "bzip2", "lz4");
    for (format, program) in [
        (Format::Gzip, "gzip"),
        (Format::Xz, "xz"),
        (Format::Zstd, "zstd -q"),
        (Format::Bzip2, "bzip2"),
        (Format::Lz4, "lz4 -q"),
    ] {
        assert_eq!(told(&format!("echo hello | {program} -c > $D")).format, format);
        assert_eq!(told(&format!("{program} -c < /dev/null > $D")).format, format);
    }
    assert_eq!(told("echo hello > $D").format, Format::Raw);
}

#[test]
fn broken_headers_are_survived() {
    rig::requires!("qemu-img", "cryptsetup");
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as usize
    };
    for name in ["qcow2", "vpc", "vhdx", "vmdk", "vdi", "parallels", "qed"] {
        let (_scratch, mut bytes) = make(&format!("qemu-img create -q -f {name} $D 1M"));
        bytes.truncate(4 << 20);
        let places: Vec<usize> = (0..bytes.len()).filter(|at| bytes[*at] != 0).take(1000).collect();
        for _ in 0..3000 {
            let at = places[random() % places.len()];
            let byte = std::mem::replace(&mut bytes[at], [0, 0xff, 0x7f, random() as u8][random() % 4]);
            let len = if random() % 8 == 0 { random() % bytes.len() } else { bytes.len() };
            fuzz(&bytes[..len]);
            bytes[at] = byte;
        }
    }
}
