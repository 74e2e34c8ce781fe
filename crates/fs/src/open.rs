//! Which file system a device holds.

use std::sync::Arc;

use block::{BlockDevice, Error, Kind, ReadAt, Result};

use crate::erofs::Erofs;
use crate::ext4::{self, Ext4};
use crate::fat::{self, Fat};
use crate::identify::{Usage, identify};
use crate::iso9660::{self, Iso9660, Tree};
use crate::ntfs::Ntfs;
use crate::squashfs::SquashFs;
use crate::udf::Udf;
use crate::{FileSystem, Writable};

/// Opens the file system on a device, whichever it is.
///
/// # Errors
/// [`Kind::Unsupported`] where it is none that is known; what the file system says on opening.
pub fn open(device: Arc<dyn ReadAt>) -> Result<Arc<dyn FileSystem>> {
    if Iso9660::is_on(&*device)? {
        let iso = Iso9660::open(Arc::clone(&device), iso9660::Options::default())?;
        // Of a disc that is both, the side that knows more: Rock Ridge has modes, owners and links; UDF long names, times
        // and large files, which the other trees of ISO 9660 lack. Where UDF is broken, the other side is still there.
        if iso.tree() != Tree::RockRidge
            && Udf::is_on(&*device)?
            && let Ok(udf) = Udf::open(Arc::clone(&device))
        {
            return Ok(Arc::new(udf));
        }
        return Ok(Arc::new(iso));
    }
    if Udf::is_on(&*device)? {
        return Ok(Arc::new(Udf::open(device)?));
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
    if Ntfs::is_on(&*device)? {
        return Ok(Arc::new(Ntfs::open(device)?));
    }
    // Its marks are the weakest.
    if Fat::is_on(&*device)? {
        return Ok(Arc::new(Fat::open(device, fat::Options::default())?));
    }
    Err(unknown(&*device)?)
}

/// What to say of a device that no reader takes: what is on it, and what can be done.
fn unknown(device: &dyn ReadAt) -> Result<Error> {
    let Some(found) = identify(device)? else {
        let what = format!("no known file system on a device of {} bytes", device.size());
        return Ok(Error::new(Kind::Unsupported, what));
    };
    let name = found.name;
    let what = match found.usage {
        Usage::Filesystem => format!(
            "{name}, which loopbox does not read by itself yet (as root: `loopbox mount`, or `loopbox attach` and mount, by a kernel that has it)"
        ),
        Usage::Member => format!("a part of {name}, which is no file system but a piece of a volume"),
        Usage::Swap => format!("{name}, which holds no files"),
    };
    Ok(Error::new(Kind::Unsupported, what))
}

/// Opens the file system on a device, to be written.
///
/// # Errors
/// As [`open`]; [`Kind::ReadOnly`] where loopbox only reads it, or the device takes no writes.
pub fn open_writable(device: Arc<dyn BlockDevice>) -> Result<Arc<dyn Writable>> {
    let read_only = device.limits().read_only;
    let found = open(device.clone())?;
    match found.name() {
        name if !is_written(name) => {
            Err(Error::new(Kind::ReadOnly, format!("{name}, which loopbox reads and does not write")))
        }
        _ if read_only => Err(Error::new(Kind::ReadOnly, "an image that takes no writes")),
        _ => Ok(Arc::new(Fat::open_writable(device, fat::Options::default())?)),
    }
}

/// Whether loopbox writes file systems of this name, as [`FileSystem::name`] has it.
pub fn is_written(name: &str) -> bool {
    matches!(name, "vfat" | "exfat")
}

/// Whether file systems of this name say whom a file belongs to.
pub fn has_owners(name: &str) -> bool {
    !matches!(name, "vfat" | "exfat" | "ntfs")
}
