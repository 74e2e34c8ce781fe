//! `loopbox info` on images made by others.

use std::path::Path;
use std::process::Command;

fn info(words: &[&str]) -> String {
    rig::run_command(Command::new(env!("CARGO_BIN_EXE_loopbox")).arg("info").args(words))
}

fn shell(line: &str, folder: &Path) {
    let mut shell = rig::User::Myself.command("sh");
    rig::run_command(shell.args(["-ec", line]).env("D", folder));
}

#[test]
fn a_disk_with_partitions_is_described_to_people_and_scripts() {
    rig::requires!("sfdisk", "mke2fs", "mkfs.vfat");
    let scratch = rig::Scratch::new("info");
    shell(
        "cd $D; truncate -s 16M disk; printf 'label: gpt\nstart=2048,size=4096,type=U,name=boot\nstart=8192,size=16384\n' | \
         sfdisk -q disk; truncate -s 2M fat; mkfs.vfat -n BOOT fat; truncate -s 8M ext; mke2fs -q -F -t ext4 -L root \
         -U 6ba7b810-9dad-11d1-80b4-00c04fd430c8 ext; dd if=fat of=disk bs=512 seek=2048 conv=notrunc status=none; \
         dd if=ext of=disk bs=512 seek=8192 conv=notrunc status=none",
        scratch.path(),
    );
    let disk = scratch.join("disk").to_str().unwrap().to_owned();
    let text = info(&[&disk]);
    for part in ["GPT", "EFI system \"boot\"", "vfat FAT12 \"BOOT\"", "ext4", "\"root\" 6ba7b810-", "mount: "] {
        assert!(text.contains(part), "{part} in\n{text}");
    }
    let json: serde_json::Value = serde_json::from_str(&info(&["--json", &disk])).unwrap();
    assert_eq!(json["table"]["scheme"], "gpt");
    assert_eq!(json["table"]["partitions"][1]["start_byte"], 8192 * 512);
    assert_eq!(json["partitions"][1]["content"]["filesystem"]["type"], "ext4");
    assert_eq!(json["partitions"][1]["content"]["filesystem"]["size_bytes"], 8 << 20);
    let json: serde_json::Value = serde_json::from_str(&info(&["--json", &format!("{disk},offset=4M")])).unwrap();
    assert_eq!(json["filesystem"]["label"], "root");
    for one in ["2", "LABEL=root", "UUID=6ba7b810-9dad-11d1-80b4-00c04fd430c8"] {
        let json = info(&["--json", &format!("{disk},partition={one}")]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap()["filesystem"]["label"], "root", "{one}");
    }
}

#[test]
fn names_inside_an_image_cannot_write_to_the_terminal() {
    rig::requires!("mke2fs");
    let scratch = rig::Scratch::new("info");
    shell("cd $D; truncate -s 1M disk; mke2fs -q -F -L \"$(printf 'a\\033[2Jb')\" disk", scratch.path());
    let text = info(&[scratch.join("disk").to_str().unwrap()]);
    assert!(text.contains("a\\u{1b}[2Jb") && !text.contains('\u{1b}'), "{text:?}");
}

#[test]
fn an_image_that_is_not_there_or_a_wrong_word_is_an_error_of_one_line() {
    let info = |image| rig::output(Command::new(env!("CARGO_BIN_EXE_loopbox")).args(["info", image]));
    for (image, said) in [("/nowhere/disk.img", "/nowhere/disk.img"), ("disk,partiton=1", "did you mean \"partition\"")]
    {
        let output = info(image);
        assert_eq!(output.status.code(), Some(2));
        let text = rig::text(&output);
        assert!(text.contains(said) && text.lines().count() == 1, "{text}");
    }
}
