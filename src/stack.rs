//! A spec becomes a device: the one place where layers are put together.
//!
//! ```text
//! disk.img,offset=1M,partition=2,ro
//! ───┬──── ────┬──── ─────┬───── ┬─
//!    file    window     window   read only          order typed = order stacked
//! ```

#![allow(dead_code, reason = "the commands that open images are on their way")]

use std::sync::Arc;

use backing::{FileBacking, Open};
use block::layer::{ReadOnly, Window};
use block::{BlockDevice, Error, Kind, ReadAt as _, Result, ResultExt as _};
use format::spec::{Spec, Step};

/// What a command wants to do with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Write too, where the file and the spec allow it; read otherwise.
    WriteIfPossible,
}

/// A spec, opened.
#[derive(Debug)]
pub struct Stack {
    /// What it was made from.
    pub spec: Spec,
    /// The file at the bottom.
    pub backing: Arc<FileBacking>,
    /// The device at the top.
    pub device: Arc<dyn BlockDevice>,
}

impl Stack {
    /// Opens the file and stacks what the spec asks for.
    ///
    /// # Errors
    /// That of opening, with the name of the image; [`Kind::Denied`] or [`Kind::ReadOnly`] where `rw` was asked for and
    /// is not possible; what a layer says of what is below it.
    pub fn open(spec: &Spec, access: Access) -> Result<Self> {
        let backing = Arc::new(open_backing(spec, access)?);
        let mut device: Arc<dyn BlockDevice> = backing.clone();
        for step in &spec.steps {
            device = stacked(device, step).context(|| spec.to_string())?;
        }
        Ok(Self { spec: spec.clone(), backing, device })
    }
}

fn open_backing(spec: &Spec, access: Access) -> Result<FileBacking> {
    let has = |wanted: fn(&Step) -> bool| spec.steps.iter().any(wanted);
    let direct = has(|step| *step == Step::Direct);
    let must = has(|step| *step == Step::ReadWrite);
    let never = has(|step| matches!(step, Step::ReadOnly | Step::Overlay(_)));
    let reading = Open { direct, ..Open::READ };
    if never || (access == Access::Read && !must) {
        return FileBacking::open(&spec.path, reading);
    }
    match FileBacking::open(&spec.path, Open { direct, ..Open::WRITE }) {
        Err(error) if !must && matches!(error.kind(), Kind::Denied | Kind::NotPermitted | Kind::ReadOnly) => {
            FileBacking::open(&spec.path, reading)
        }
        other => other,
    }
}

/// One step on top of a device.
fn stacked(device: Arc<dyn BlockDevice>, step: &Step) -> Result<Arc<dyn BlockDevice>> {
    let window = |start: u64, len: u64| -> Result<Arc<dyn BlockDevice>> {
        Ok(Arc::new(Window::new(Arc::clone(&device), start, len)?))
    };
    let size = device.size();
    match step {
        Step::ReadOnly => Ok(Arc::new(ReadOnly::new(device))),
        Step::Offset(offset) if *offset > size => {
            let context = format!("offset {offset} of an image of {size} bytes");
            Err(Error::new(Kind::OutOfRange, context))
        }
        Step::Offset(offset) => window(*offset, size - offset),
        Step::SizeLimit(0) => Ok(device),
        Step::SizeLimit(limit) => window(0, size.min(*limit)),
        Step::Partition(selector) => {
            let table = format::partition::read(&device)?;
            let table = table.ok_or_else(|| Error::new(Kind::NotFound, "no partition table"))?;
            let partition = table.find(selector, |partition| {
                // One that lies behind the end of the device is not the one that is looked for.
                let Ok((start, len)) = partition.range(size) else { return Ok(Default::default()) };
                let found = fs::identify::identify(&Window::new(Arc::clone(&device), start, len)?)?;
                Ok(found.map(|found| (found.label, found.uuid)).unwrap_or_default())
            })?;
            let (start, len) = partition.range(size)?;
            window(start, len)
        }
        // These speak of the file, or of how its bytes are taken, and were heard when it was opened.
        Step::ReadWrite | Step::Direct | Step::Block(_) | Step::Format(_) => Ok(device),
        other => Err(Error::new(Kind::Unsupported, format!("{other:?}"))),
    }
}
