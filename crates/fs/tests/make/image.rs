//! Images of a folder.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use backing::{FileBacking, Open};
use block::BlockDevice;
use loopbox_fs::folder::Folder;
use loopbox_fs::make::tree::Options;
use loopbox_fs::make::{Made, Make, Tree, Type};
use loopbox_fs::progress::Progress;
use loopbox_fs::{FileSystem, Time};
use rig::Scratch;

/// When everything is made.
pub(crate) const NOW: Time = Time { seconds: 1_700_000_000, nanoseconds: 0 };

/// What is made where nothing else is said.
pub(crate) fn make(file_system: Type) -> Make {
    Make {
        file_system,
        label: "LABEL".into(),
        id: 0x1234_5678_9abc_4def_8123_4567_89ab_cdef,
        time: NOW,
        start_bytes: 0,
    }
}

/// What was told of a file system in the making.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub bytes: Mutex<u64>,
    pub failed: Mutex<Vec<String>>,
}

impl Progress for Told {
    fn copied(&self, bytes: u64) {
        *self.bytes.lock().unwrap() += bytes;
    }

    fn failed(&self, path: &[u8], _: &block::Error) {
        self.failed.lock().unwrap().push(path.escape_ascii().to_string());
    }
}

/// An image that holds what a source does, as large as it needs to be.
pub(crate) fn image_of(make: &Make, source: &dyn FileSystem, path: &Path, told: &Told) -> Made {
    let tree = Tree::read(source, source.root(), Options::default()).unwrap();
    let size = make.size(&tree).unwrap();
    let _ = std::fs::remove_file(path);
    let device: Arc<dyn BlockDevice> = Arc::new(FileBacking::create(path, size).unwrap());
    let made = make.write(&tree, source, &device, told).unwrap();
    drop(device);
    assert!(made.bytes <= size, "{} bytes, {size} were said", made.bytes);
    std::fs::File::options().write(true).open(path).unwrap().set_len(made.bytes).unwrap();
    made
}

/// An image of a folder, which must be the same when it is made twice.
pub(crate) fn image(scratch: &Scratch, make: &Make, folder: &Path) -> (PathBuf, Told) {
    let (first, second) = (scratch.join("first.img"), scratch.join("second.img"));
    let told = Told::default();
    image_of(make, &Folder::open(folder).unwrap(), &first, &told);
    image_of(make, &Folder::open(folder).unwrap(), &second, &Told::default());
    rig::run("cmp", [&first, &second]);
    (first, told)
}

/// The file system of an image.
pub(crate) fn open(image: &Path) -> Arc<dyn FileSystem> {
    let device = FileBacking::open(image, Open { lock: false, ..Open::READ }).unwrap();
    loopbox_fs::open(Arc::new(device)).unwrap()
}

/// Twenty thousand small files, half of them in one directory.
pub(crate) fn many_and_flat(folder: &Path) {
    many(folder, 10_000);
    std::fs::create_dir(folder.join("flat")).unwrap();
    for n in 0..10_000 {
        std::fs::write(folder.join(format!("flat/a name that is rather long, number {n}")), format!("{n}")).unwrap();
    }
}

/// So many small files in a hundred directories.
pub(crate) fn many(folder: &Path, files: usize) {
    for n in 0..files {
        let below = folder.join(format!("{:02}", n % 100));
        if n < 100 {
            std::fs::create_dir_all(&below).unwrap();
        }
        let byte = n as u8;
        std::fs::write(below.join(format!("a file with the number {n}.dat")), vec![byte; n * 7919 % 6000]).unwrap();
    }
    rig::tree::set_times(folder);
}
