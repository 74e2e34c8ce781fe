//! Images that nobody here made, out of Debian's packages: boot discs that are disks as well, and the FAT inside of them.

use std::path::{Path, PathBuf};

use rig::tree::{Manifest, assert_same, of_folder};
use rig::{User, requires};

use crate::session::Session;

/// Package, path of a hybrid disc in it, and where in it a FAT is: a file, or a partition.
const DISCS: &[(&str, &str, Option<Inner>)] = &[
    ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso", None),
    ("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-floppy.img", None),
    ("ipxe", "usr/lib/ipxe/ipxe.iso", Some(Inner::File("efi.img"))),
    ("memtest86+", "usr/lib/memtest86+/memtest86+x64.iso", Some(Inner::Partition(2))),
    ("memtest86+", "usr/lib/memtest86+/memtest86+ia32.iso", Some(Inner::Partition(2))),
];

#[derive(Clone, Copy)]
enum Inner {
    File(&'static str),
    Partition(u32),
}

/// Names, kinds, sizes, times and sums: owners and modes are those of whoever takes it out.
fn known(folder: &Path) -> Manifest {
    let mut manifest = of_folder(folder);
    for file in manifest.values_mut() {
        file.mode &= 0o170_000;
        (file.owner, file.links, file.modified) = ((0, 0), 0, Default::default());
    }
    manifest
}

#[test]
fn boot_discs_are_taken_out_as_others_do() {
    requires!("xorriso", "mcopy", "bsdtar", "7z");
    for (package, path, inner) in DISCS {
        let Some(files) = rig::package::files(rig::test_name!(), package) else { return };
        let session = Session::new(User::Ordinary, "real");
        let image = session.join("image");
        std::fs::copy(files.join(path), &image).unwrap();
        session.shell("mkdir theirs sevenths tarred; xorriso -osirrox on -indev image -extract / theirs 2>/dev/null; chmod -R u+rwX theirs");
        let (ours, theirs) = (session.join("ours"), known(&session.join("theirs")));
        assert!(theirs.len() >= 3, "{path}: {theirs:?}");
        session.done(["cp".as_ref(), image.as_os_str(), ours.as_os_str()]);
        session.shell("chmod -R u+rwX ours");
        assert_same("xorriso", &theirs, path, &known(&ours));
        std::fs::write(session.join("tar"), session.output(["tar".as_ref(), image.as_os_str()]).stdout).unwrap();
        session.shell("bsdtar -xf tar -C tarred; chmod -R u+rwX tarred");
        assert_same("xorriso", &theirs, "tar", &known(&session.join("tarred")));
        let listed = session.done(["ls".into(), format!("{}:/", image.display())]);
        let mut names: Vec<String> = theirs.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect();
        names.retain(|name| !name.is_empty() && !name.contains('/'));
        let mut listed: Vec<&str> = listed.lines().collect();
        listed.sort_unstable();
        names.sort_unstable();
        assert_eq!(listed, names, "{path}");
        let info = session.done(["info".as_ref(), image.as_os_str()]);
        assert!(info.contains("rock-ridge") && info.contains("el-torito") && info.contains("MBR"), "{path}: {info}");
        if let Some(inner) = inner {
            fat(&session, &image, *inner);
        }
    }
}

/// The FAT inside of a disc, against mtools and 7z.
fn fat(session: &Session, disc: &PathBuf, inner: Inner) {
    let part = session.join("part");
    let spec = match inner {
        Inner::File(name) => {
            let bytes = session.output(["cat".to_owned(), format!("{}:/{name}", disc.display())]).stdout;
            std::fs::write(&part, bytes).unwrap();
            part.display().to_string()
        }
        Inner::Partition(number) => {
            let told = rig::run("sfdisk", ["--json".as_ref(), disc.as_os_str()]);
            let told: serde_json::Value = serde_json::from_str(&told).unwrap();
            let partition = &told["partitiontable"]["partitions"][number as usize - 1];
            let (start, size) = (partition["start"].as_u64().unwrap(), partition["size"].as_u64().unwrap());
            let bytes = std::fs::read(disc).unwrap();
            std::fs::write(&part, &bytes[start as usize * 512..][..size as usize * 512]).unwrap();
            format!("{},partition={number}", disc.display())
        }
    };
    session.shell("mkdir inner; mcopy -s -Q -i part '::*' inner; 7z x -y -osevenths part >/dev/null");
    let copy = session.join("fat");
    session.done(["cp".to_owned(), format!("{spec}:/"), copy.display().to_string()]);
    let (ours, theirs) = (known(&copy), known(&session.join("inner")));
    assert!(theirs.values().any(|file| file.size > 100_000), "{theirs:?}");
    assert_same("mtools", &theirs, &spec, &ours);
    assert_same("7z", &known(&session.join("sevenths")), &spec, &ours);
}
