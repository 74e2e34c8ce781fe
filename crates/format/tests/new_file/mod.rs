//! A file that a new image is written to.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use block::Result;
use loopbox_format::sequential::Output;

/// Of a test: what fails ends it.
#[derive(Debug)]
pub struct NewFile(pub File);

impl Output for NewFile {
    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        self.0.write_all_at(bytes, offset).unwrap();
        Ok(())
    }

    fn set_size(&self, bytes: u64) -> Result<()> {
        self.0.set_len(bytes).unwrap();
        Ok(())
    }
}
