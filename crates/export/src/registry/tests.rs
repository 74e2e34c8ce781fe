use super::*;

fn registry() -> (tempfile::TempDir, Registry) {
    let scratch = tempfile::tempdir().unwrap();
    let registry = Registry::at(scratch.path());
    (scratch, registry)
}

fn disk(inode: u64, read_only: bool) -> Wanted {
    Wanted {
        used_as: Use::Disk,
        image: Image { path: format!("/image{inode}").into(), device: 7, inode },
        spec: "image".into(),
        read_only,
        offset: 0,
        sizelimit: 0,
        size: 4096,
        block: 512,
        point: None,
        node: None,
    }
}

#[test]
fn numbers_are_the_lowest_free_ones() {
    let (_scratch, registry) = registry();
    let first = registry.add(disk(1, false)).unwrap();
    let second = registry.add(disk(2, false)).unwrap();
    assert_eq!((first.holding().number, second.holding().number), (0, 1));
    let node = first.holding().node.clone().unwrap();
    assert!(node.ends_with("loop0/loop0") && node.parent().unwrap().is_dir());
    assert_eq!(registry.find(&node).unwrap().as_ref(), Some(first.holding()));
    first.end(Outcome::Safe).unwrap();
    assert!(!node.parent().unwrap().exists());
    assert_eq!(registry.list().unwrap(), [second.holding().clone()]);
    assert_eq!(registry.add(disk(3, false)).unwrap().holding().number, 0);
}

#[test]
fn an_image_is_held_once_unless_nobody_writes() {
    let (_scratch, registry) = registry();
    let first = registry.add(disk(1, true)).unwrap();
    let _second = registry.add(disk(1, true)).unwrap();
    let error = registry.add(disk(1, false)).unwrap_err();
    assert_eq!(error.kind(), Kind::Busy);
    assert!(error.to_string().contains("loop0/loop0"), "{error}");
    drop(first);
}

#[test]
fn what_a_dead_process_left_is_cleaned_away() {
    let (scratch, registry) = registry();
    let held = registry.add(disk(1, false)).unwrap();
    // The lock goes with the process.
    drop(held);
    assert!(scratch.path().join("loop0").is_dir());
    std::fs::write(scratch.path().join("9.json"), b"{ not ours").unwrap();
    assert_eq!(registry.list().unwrap(), []);
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"]);
}

#[test]
fn who_waits_is_told_how_it_ended() {
    let (_scratch, registry) = registry();
    for (outcome, safe) in [(Outcome::Safe, true), (Outcome::Failed("no room".into()), false)] {
        let held = registry.add(disk(1, false)).unwrap();
        let mut holding = held.holding().clone();
        holding.pid = 0; // nobody is to be asked to end
        let (waiting, registry) = (registry.clone(), &registry);
        let entry = registry.entry(0);
        let waiter = std::thread::spawn(move || waiting.release(&holding, Unmount::Plain));
        // The waiter has the file open before it is removed, or finds it gone: both are right.
        std::fs::metadata(&entry).unwrap();
        held.end(outcome).unwrap();
        let result = waiter.join().unwrap();
        assert!(result.is_ok() || !safe, "{result:?}");
    }
}

#[test]
fn many_at_once_get_different_numbers() {
    let (_scratch, registry) = registry();
    let held: Vec<Held> = std::thread::scope(|scope| {
        let adding: Vec<_> = (0..64)
            .map(|inode| {
                let registry = &registry;
                scope.spawn(move || registry.add(disk(inode, false)).unwrap())
            })
            .collect();
        adding.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let mut numbers: Vec<u32> = held.iter().map(|held| held.holding().number).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..64).collect::<Vec<u32>>());
    assert_eq!(registry.list().unwrap().len(), 64);
}
