//! Discs of genisoimage: ISO 9660 and UDF at one time.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use block::ReadAt;
use loopbox_fs::udf::Udf;
use rig::tree::Sample;
use rig::{Scratch, requires};

pub(crate) fn device(image: &Path) -> Arc<dyn ReadAt> {
    Arc::new(backing::FileBacking::open(image, backing::Open { lock: false, ..backing::Open::READ }).unwrap())
}

/// Names as long as UDF 1.02 has them, and content; no links, attributes and special files, which the tool does not write.
pub(crate) fn disc(scratch: &Scratch, many: u32, options: &[&str]) -> (PathBuf, PathBuf) {
    let folder = scratch.join("folder");
    rig::tree::make(&folder, Sample { many, ..Sample::default() });
    for name in ["semi;1", "tab\there", "back\\slash"] {
        let _ = std::fs::remove_file(folder.join("names").join(name));
    }
    // It takes neither links nor more than six levels, and Joliet cuts the longest names to the same one.
    for len in [100, 220] {
        std::fs::remove_file(folder.join(format!("names/long{}{len}", "n".repeat(len)))).unwrap();
    }
    std::fs::remove_dir_all(folder.join("links")).unwrap();
    std::fs::remove_dir_all(folder.join("deep1")).unwrap();
    let image = scratch.join("disc.iso");
    let mut command = std::process::Command::new(rig::which("genisoimage").unwrap());
    command.args(["-quiet", "-udf", "-V", "A DISC", "-input-charset", "utf-8"]).args(options);
    rig::run_command(command.arg("-o").arg(&image).arg(&folder));
    (folder, image)
}

/// Path, whether it is a directory, size and sum.
type Content = Vec<(String, bool, u64, Option<String>)>;

fn content(tree: &rig::tree::Manifest) -> Content {
    let directory = |mode: u32| mode & 0o170_000 == 0o040_000;
    tree.iter()
        .map(|(path, file)| {
            (String::from_utf8(path.clone()).unwrap(), directory(file.mode), file.size, file.sha256.clone())
        })
        .collect()
}

#[test]
fn the_tree_of_a_disc() {
    requires!("genisoimage");
    let scratch = Scratch::new("udf");
    let (folder, image) = disc(&scratch, 300, &["-J", "-joliet-long"]);
    let files = Udf::open(device(&image)).unwrap();
    let (ours, theirs) = (content(&rig::tree::of_file_system(&files)), content(&rig::tree::of_folder(&folder)));
    let different = ours.iter().zip(&theirs).find(|(one, other)| one != other);
    assert!(ours == theirs, "{} and {} files, {different:?}", ours.len(), theirs.len());
    let modified = |tree: rig::tree::Manifest| tree[&b"sizes/4097"[..]].modified.seconds;
    assert_eq!(modified(rig::tree::of_file_system(&files)), modified(rig::tree::of_folder(&folder)));
    assert_eq!(loopbox_fs::FileSystem::label(&files), "A DISC");
    loopbox_fs::testing::conformance::check(&files);
}

#[test]
fn the_richer_side_is_shown() {
    requires!("genisoimage");
    for (options, wanted) in [(&["-R"][..], "iso9660"), (&["-J", "-joliet-long"], "udf"), (&[], "udf")] {
        let scratch = Scratch::new("udf");
        let (_, image) = disc(&scratch, 3, options);
        assert_eq!(loopbox_fs::open(device(&image)).unwrap().name(), wanted, "{options:?}");
    }
}
