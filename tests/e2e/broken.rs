//! Images that lie, kept in test_data/broken: every parser, and the program, says what is wrong and goes on.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use rig::User;

use crate::session::Session;

/// How long one command may take, on a machine that is busy.
const TIME_MAX: Duration = Duration::from_secs(20);
/// How much one command may print, bytes: the images hold almost nothing.
const OUTPUT_BYTES_MAX: usize = 100_000;

/// Name of each image, and what must be said of it: the table of the README.
fn images() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data/broken");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let rows = readme.lines().filter(|line| line.starts_with("| ")).skip(1);
    let images: Vec<(String, String)> = rows
        .map(|line| {
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            (cells[0].to_owned(), cells[2].to_owned())
        })
        .collect();
    let listed: BTreeSet<String> = images.iter().map(|(name, _)| name.clone()).collect();
    let there = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> = there.filter(|name| name != "README.md").collect();
    assert_eq!(there, listed, "the folder (left) and its README.md (right)");
    images
}

fn bytes(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("test_data/broken").join(name)).unwrap()
}

#[test]
fn every_parser_survives_every_broken_image() {
    for (name, _) in images() {
        let data = bytes(&name);
        for fuzz in [
            format::partition::fuzz,
            format::probe::fuzz,
            ::fs::identify::fuzz,
            ::fs::iso9660::fuzz,
            ::fs::ext4::fuzz,
            ::fs::squashfs::fuzz,
            ::fs::erofs::fuzz,
            ::fs::udf::fuzz,
            ::fs::fat::fuzz,
            format::luks::fuzz,
            |data: &[u8]| format::image::fuzz(data, format::probe::Format::Qcow2),
            |data: &[u8]| format::image::fuzz(data, format::probe::Format::Vhdx),
            |data: &[u8]| format::image::fuzz(data, format::probe::Format::Vmdk),
            |data: &[u8]| format::image::fuzz(data, format::probe::Format::Vhd),
            // As if what is broken lay elsewhere.
            |data: &[u8]| ::fs::ext4::fuzz(data.get(512..).unwrap_or_default()),
            |data: &[u8]| ::fs::iso9660::fuzz(data.get(..data.len() / 2).unwrap_or_default()),
        ] {
            let start = Instant::now();
            fuzz(&data);
            assert!(start.elapsed() < TIME_MAX, "{name}: {:?}", start.elapsed());
        }
    }
}

#[test]
fn the_program_says_what_is_wrong_with_each() {
    let session = Session::new(User::Ordinary, "broken");
    for (name, expected) in images() {
        let image = session.join(&name);
        let data = bytes(&name);
        fs::write(&image, &data).unwrap();
        let mut said = String::new();
        for words in [&["info"][..], &["ls", "-laR"], &["tree", "-a"], &["tar"]] {
            let start = Instant::now();
            let output = session.output(words.iter().map(|word| word.as_ref()).chain([image.as_os_str()]));
            let took = start.elapsed();
            let text = rig::text(&output);
            assert!(took < TIME_MAX, "{words:?} {name}: {took:?}");
            assert!(output.stdout.len() < OUTPUT_BYTES_MAX, "{words:?} {name}: {} bytes", output.stdout.len());
            assert!(matches!(output.status.code(), Some(0..=2)), "{words:?} {name}: {}\n{text}", output.status);
            // Who fails says of what.
            let errors = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.success(), errors.is_empty(), "{words:?} {name}: {errors}");
            assert!(errors.lines().all(|line| line.contains(&name)), "{words:?} {name}: {errors}");
            said.push_str(&text);
        }
        assert!(said.contains(&expected), "{name}: {expected:?} is not in\n{said}");
        assert!(fs::read(&image).unwrap() == data, "{name} was changed");
    }
}
