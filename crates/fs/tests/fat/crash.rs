//! The process dies, or the power fails, at each write: what was not being changed stays whole, and the checker accepts
//! the rest or mends it without losing more than the file that was being written.

use std::collections::BTreeMap;
use std::sync::Arc;

use block::testing::crash::Disk;
use block::{BlockDevice, Error, Kind as ErrorKind};
use loopbox_fs::fat::{Fat, Options};
use loopbox_fs::testing::model::{ByPath, Model, Operation, Target, compare};
use loopbox_fs::{FileSystem as _, Writable as _};
use rig::{Scratch, requires};

use crate::image::{Kind, SMALL, open, open_writable};

/// What is there before.
fn prepare() -> Vec<Operation> {
    let mut operations = vec![
        Operation::Create("kept".into()),
        Operation::Write("kept".into(), 0, 20_000, 1),
        Operation::MakeDirectory("directory".into()),
        Operation::Create("directory/a kept file with a long name".into()),
        Operation::Write("directory/a kept file with a long name".into(), 0, 700, 2),
        Operation::Create("old target of a rename".into()),
        Operation::Write("old target of a rename".into(), 0, 3000, 3),
        Operation::Create("removed".into()),
        Operation::Write("removed".into(), 0, 9000, 4),
        Operation::Create("shrinks".into()),
        Operation::Write("shrinks".into(), 0, 9000, 5),
        Operation::MakeDirectory("directory/empty".into()),
        Operation::MakeDirectory("many".into()),
    ];
    operations.extend((0..20).map(|n| Operation::Create(format!("many/a file with a name, number {n}"))));
    operations
}

/// What is cut.
fn workload() -> Vec<Operation> {
    let mut operations = vec![
        Operation::Create("new.txt".into()),
        Operation::Write("new.txt".into(), 0, 6000, 6),
        Operation::Write("new.txt".into(), 6000, 3000, 7),
        Operation::Write("kept".into(), 5000, 100, 8),
        Operation::MakeDirectory("made".into()),
        Operation::Create("made/inside".into()),
        Operation::Write("made/inside".into(), 2000, 2000, 9),
        Operation::Truncate("shrinks".into(), 1000),
        Operation::Truncate("shrinks".into(), 5000),
        Operation::Remove("removed".into()),
        Operation::Create("takes the room of what was removed".into()),
        Operation::Write("takes the room of what was removed".into(), 0, 12_000, 10),
        Operation::Rename("new.txt".into(), "renamed, and longer than before.txt".into()),
        Operation::Rename("renamed, and longer than before.txt".into(), "old target of a rename".into()),
        Operation::Rename("directory".into(), "made/directory".into()),
        Operation::RemoveDirectory("made/directory/empty".into()),
        Operation::Truncate("old target of a rename".into(), 0),
    ];
    operations.extend((20..40).map(|n| Operation::Create(format!("many/a file with a name, number {n}"))));
    operations.push(Operation::Remove("many/a file with a name, number 3".into()));
    operations
}

/// The tree without what an operation names, and all below.
fn beside(tree: &BTreeMap<String, Option<Vec<u8>>>, operation: &Operation) -> BTreeMap<String, Option<Vec<u8>>> {
    let named = match operation {
        Operation::Create(path)
        | Operation::MakeDirectory(path)
        | Operation::Write(path, ..)
        | Operation::Truncate(path, _)
        | Operation::Remove(path)
        | Operation::RemoveDirectory(path) => vec![path],
        Operation::Rename(from, to) => vec![from, to],
    };
    let is_named = |path: &String| named.iter().any(|named| path == *named || path.starts_with(&format!("{named}/")));
    let is_mended = |path: &String| path.starts_with("FSCK") || path.starts_with("LOST");
    tree.iter()
        .filter(|(path, _)| !is_named(path) && !is_mended(path))
        .map(|(path, file)| (path.clone(), file.clone()))
        .collect()
}

/// Runs the workload until the power fails in event `cut`, with a flush after each operation where `flush`; returns the
/// disk, the model of what was done, and what was being done.
fn run(image: &[u8], cut: u64, flush: bool) -> (Arc<Disk>, Model, Option<Operation>) {
    let disk = Arc::new(Disk::with_image(image.to_vec(), cut));
    let fat = ByPath(Fat::open_writable(Arc::clone(&disk) as Arc<dyn BlockDevice>, Options::default()).unwrap());
    let mut model = Model::default();
    prepare().iter().for_each(|operation| model.apply(operation).unwrap());
    for operation in workload() {
        let mut done = fat.apply(&operation);
        if flush {
            done = done.and_then(|()| fat.0.flush());
        }
        match done.map_err(|error: Error| error.kind()) {
            Ok(()) => model.apply(&operation).unwrap(),
            Err(ErrorKind::Disconnected) => return (disk, model, Some(operation)),
            Err(other) => panic!("{other:?}: {operation:?}"),
        }
    }
    match fat.0.close().map_err(|error| error.kind()) {
        Ok(()) => (disk, model, None),
        Err(ErrorKind::Disconnected) => (disk, model, Some(Operation::Create("nothing".into()))),
        Err(other) => panic!("{other:?}: the end"),
    }
}

fn check(kind: &Kind, image: &std::path::Path, bytes: &[u8], model: &Model, operation: &Operation, when: &str) {
    std::fs::write(image, bytes).unwrap();
    // As it is, without the help of a checker.
    let found = ByPath(open_writable(image)).tree();
    compare(&beside(&found, operation), &beside(&model.tree(), operation), when);
    let said = kind.mend(image);
    if matches!(operation, Operation::Rename(..)) {
        // It empties the second of two names of a directory, sees in a second run that it must not be empty, and in a
        // third one that a long name is left.
        kind.mend(image);
        kind.mend(image);
    }
    let (well, text) = kind.check(image);
    assert!(well, "{when}: {operation:?}:\n{said}\nand then\n{text}");
    let lost = said.lines().find(|line| line.contains("unused cluster"));
    let chains = lost.and_then(|line| line.split("in ").nth(1)?.split(' ').next()?.parse::<u32>().ok()).unwrap_or(0);
    assert!(chains <= 1, "{when}: {operation:?}: {said}");
    let found = ByPath(open_writable(image)).tree();
    compare(&beside(&found, operation), &beside(&model.tree(), operation), &format!("{when}, mended: {said}"));
}

#[test]
fn every_write_may_be_the_last() {
    requires!("mkfs.fat", "mkfs.exfat", "fsck.fat", "fsck.exfat");
    for kind in SMALL {
        let scratch = Scratch::new("fat-crash");
        let image = kind.make(&scratch);
        let fat = ByPath(open_writable(&image));
        prepare().iter().for_each(|operation| fat.apply(operation).unwrap());
        fat.0.close().unwrap();
        kind.assert_clean(&image);
        let before = std::fs::read(&image).unwrap();
        let (whole, model, _) = run(&before, u64::MAX, false);
        std::fs::write(&image, whole.live()).unwrap();
        kind.assert_clean(&image);
        compare(&ByPath(open_writable(&image)).tree(), &model.tree(), "the whole workload");
        assert!(open(&image).space().is_ok());
        for cut in 0..whole.events() {
            let (disk, model, operation) = run(&before, cut, false);
            let Some(operation) = operation else { break };
            let when = format!("{}: the process died in event {cut}", kind.name);
            check(kind, &image, &disk.live(), &model, &operation, &when);
        }
        let (whole, ..) = run(&before, u64::MAX, true);
        for cut in (0..whole.events()).step_by(4) {
            let (disk, model, operation) = run(&before, cut, true);
            let Some(operation) = operation else { break };
            for seed in [cut, cut + 1] {
                let when = format!("{}: the power failed in event {cut}, seed {seed}", kind.name);
                let mut after = disk.after_crash(seed).live();
                after.truncate(before.len());
                check(kind, &image, &after, &model, &operation, &when);
            }
        }
    }
}
