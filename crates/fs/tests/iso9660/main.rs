//! ISO 9660 as real programs write it: xorriso, genisoimage and mkzftree make images, which are compared with the
//! folders that they were made from, and with what xorriso and 7z take out of them.

#![allow(clippy::panic, clippy::unwrap_used, clippy::expect_used)]

extern crate loopbox_fs as fs;

mod device;
mod hostile;
mod peers;

use std::path::Path;
use std::sync::Arc;

use fs::iso9660::{Iso9660, Options, Tree};

#[global_allocator]
static COUNTED: rig::memory::Counted = rig::memory::Counted;

/// Opens an image file.
fn open(image: &Path, tree: Tree) -> Iso9660 {
    let device = Arc::new(device::File::open(image));
    Iso9660::open(device, Options { tree, ..Options::default() }).unwrap_or_else(|error| panic!("{image:?}: {error:?}"))
}
