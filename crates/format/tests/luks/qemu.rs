//! QEMU's luks driver (LUKS1), both ways: also the ciphers that cryptsetup has from the kernel alone. Keys of 192 bits are
//! left out: qemu-img 7.2 aborts on them.

use std::path::Path;
use std::process::Command;

use block::{BlockDevice as _, ReadAt as _};
use rig::{requires, run};

use crate::volume::{Folder, PASSPHRASE, content, open, read_all};

/// Runs `qemu-img`, again where the processor was too busy for it to count its iterations.
fn convert(words: &[&str]) {
    let mut command = Command::new("qemu-img");
    let command = command.args(words);
    for _ in 0..20 {
        let output = rig::output(command);
        if output.status.success() || !rig::text(&output).contains("accurate CPU usage") {
            assert!(output.status.success(), "{command:?}: {}", rig::text(&output));
            return;
        }
    }
    panic!("{command:?}: this machine is too busy");
}

#[test]
fn qemu_and_loopbox_read_what_the_other_wrote() {
    requires!("qemu-img");
    let plain = content(3 << 20, 5);
    for options in [
        "cipher-alg=aes-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
        "cipher-alg=aes-128,cipher-mode=xts,ivgen-alg=plain,hash-alg=sha1",
        "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha512",
        "cipher-alg=aes-256,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=ripemd160",
        "cipher-alg=aes-128,cipher-mode=ecb,ivgen-alg=plain,hash-alg=sha256",
        "cipher-alg=serpent-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
        "cipher-alg=serpent-128,cipher-mode=cbc,ivgen-alg=essiv,ivgen-hash-alg=sha256,hash-alg=sha256",
        "cipher-alg=twofish-256,cipher-mode=xts,ivgen-alg=plain64,hash-alg=sha256",
        "cipher-alg=twofish-128,cipher-mode=cbc,ivgen-alg=plain64,hash-alg=sha256",
    ] {
        let folder = Folder::new();
        let secret = format!("secret,id=key,file={}", folder.key.display());
        let (raw, volume, back) = (folder.join("raw"), folder.join("volume"), folder.join("back"));
        std::fs::write(&raw, &plain).unwrap();
        let text = |path: &Path| path.display().to_string();
        let create = format!("key-secret=key,iter-time=10,{options}");
        let words =
            ["convert", "--object", &secret, "-f", "raw", "-O", "luks", "-o", &create, &text(&raw), &text(&volume)];
        convert(&words);
        let device = open(&volume, PASSPHRASE).unwrap_or_else(|error| panic!("{options}: {error:?}"));
        assert_eq!(device.size(), plain.len() as u64);
        assert!(read_all(&device) == plain, "{options}: loopbox reads other bytes");
        let mut whole = plain.clone();
        for (at, len) in [(0, 512), (1000, 3), (4096, 70_000), (2 << 20, 1 << 20)] {
            let written = content(len, at as u64 + 7);
            device.write_at(&written, at as u64).unwrap();
            whole[at..at + len].copy_from_slice(&written);
        }
        device.flush().unwrap();
        drop(device);
        let image = format!("driver=luks,key-secret=key,file.filename={}", text(&volume));
        run("qemu-img", ["convert", "--object", &secret, "--image-opts", &image, "-O", "raw", &text(&back)]);
        assert!(std::fs::read(&back).unwrap() == whole, "{options}: QEMU reads other bytes");
    }
}
