//! Which file system a device holds.

use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result};

use crate::FileSystem;
use crate::erofs::Erofs;
use crate::ext4::{self, Ext4};
use crate::iso9660::{self, Iso9660};
use crate::squashfs::SquashFs;

/// Opens the file system on a device, whichever it is.
///
/// # Errors
/// [`Kind::Unsupported`] where it is none that is known; what the file system says on opening.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Arc<dyn FileSystem>> {
    if Iso9660::is_on(&*device)? {
        return Ok(Arc::new(Iso9660::open(device, iso9660::Options::default())?));
    }
    if Ext4::is_on(&*device)? {
        return Ok(Arc::new(Ext4::open(device, ext4::Options::default())?));
    }
    if Erofs::is_on(&*device)? {
        return Ok(Arc::new(Erofs::open(device)?));
    }
    if SquashFs::is_on(&*device)? {
        return Ok(Arc::new(SquashFs::open(device)?));
    }
    Err(Error::new(Kind::Unsupported, format!("no known file system on a device of {} bytes", device.size())))
}
