//! Which file system a device holds.

use std::sync::Arc;

use block::{Error, Kind, ReadAt, Result};

use crate::FileSystem;
use crate::erofs::Erofs;
use crate::ext4::{self, Ext4};
use crate::identify::{Usage, identify};
use crate::iso9660::{self, Iso9660, Tree};
use crate::squashfs::SquashFs;
use crate::udf::Udf;

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
