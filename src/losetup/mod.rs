//! Called by the name `losetup`, the program is losetup: the same options, output and exit status as that of
//! util-linux 2.38.1, byte for byte, so that scripts do not notice.
//!
//! ```text
//! words    the options          getopt  how they are taken apart      number  numbers of bytes
//! device   one loop device      list    the columns and lines         table   columns, raw, JSON
//! ```
//!
//! Where it differs, losetup would have failed: a node that a container's `/dev` lacks is made. Of newer releases it
//! knows `--remove`, `--loop-ref` and the columns MAJ, MIN, BACK-MAJ, BACK-MIN and REF.

mod device;
mod getopt;
mod list;
mod number;
mod table;
mod words;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use export::loop_device::{ATTEMPTS_MAX, Control, bind};
use rustix::io::Errno;
use sys::loop_device::{self as driver, Flags, Info};

use device::{Device, errno};
use getopt::Words;
use table::{Form, Output, Table};
use words::Word;

/// How it ended: a message for standard error, without the name of the program, which may be empty.
type Failed = Vec<u8>;
type Result<T> = std::result::Result<T, Failed>;

/// Whether the program was called by the name losetup.
pub fn is_called(name: Option<&OsStr>) -> bool {
    name.is_some_and(|name| Path::new(name).file_name() == Some(OsStr::new("losetup")))
}

/// losetup, from its first word on.
pub fn main(mut arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let full = arguments.next().unwrap_or_default();
    let name = Path::new(&full).file_name().unwrap_or_default().to_string_lossy().into_owned();
    let mut losetup = Losetup { name, out: Vec::new(), status: 0 };
    let done = losetup.run(full.as_bytes(), arguments.collect());
    if let Err(message) = done {
        losetup.status = 1;
        losetup.warn(&message);
    }
    losetup.flush();
    ExitCode::from(losetup.status)
}

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// List all, as lines or as a table.
    List,
    /// Name a free device.
    Find,
    /// Attach a file.
    Attach,
    Detach,
    DetachAll,
    SetCapacity,
    SetDirectIo,
    SetBlockSize,
    /// Show one device.
    Show,
    Remove,
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Wanted {
    action: Option<Action>,
    device: Option<Device>,
    /// Where to attach; any free device when there is none.
    node: Option<PathBuf>,
    associated: Option<OsString>,
    offset: Option<u64>,
    sizelimit: u64,
    block_size: Option<u64>,
    flags: Flags,
    direct_io: Option<bool>,
    no_overlap: bool,
    show: bool,
    list: bool,
    json: bool,
    raw: bool,
    without_headings: bool,
    output: Option<OsString>,
    output_all: bool,
    loop_ref: Option<OsString>,
}

struct Losetup {
    /// The last part of the name that it was called by.
    name: String,
    /// What is printed at the end, as from a buffered stream.
    out: Vec<u8>,
    status: u8,
}

impl Losetup {
    fn run(&mut self, full_name: &[u8], arguments: Vec<OsString>) -> Result<()> {
        let count = arguments.len();
        let Some((mut wanted, operands)) = self.wanted(full_name, arguments)? else { return Ok(()) };
        let mut operands = operands.into_iter();
        let mut file = None;
        if count == 0 || (wanted.action.is_none() && count == 1 && (wanted.raw || wanted.json)) {
            (wanted.action, wanted.list) = (Some(Action::List), true);
        }
        if wanted.action == Some(Action::Find)
            && let Some(operand) = operands.next()
        {
            (wanted.action, file) = (Some(Action::Attach), Some(operand));
            if operands.next().is_some() {
                return Err(b"unexpected arguments".to_vec());
            }
        }
        if wanted.list && wanted.action.is_none() && operands.len() == 0 {
            wanted.action = Some(Action::List);
        }
        if wanted.action.is_none() && operands.len() == 1 {
            wanted.action = Some(match (wanted.direct_io, wanted.block_size) {
                (Some(_), _) => Action::SetDirectIo,
                (None, Some(_)) => Action::SetBlockSize,
                (None, None) => Action::Show,
            });
            wanted.device = Some(used(&operands.next().unwrap_or_default())?);
        }
        if wanted.action.is_none() {
            wanted.action = Some(Action::Attach);
            // Whether it is a loop device, the driver says; what follows the file is nothing to it.
            let device = operands.next().ok_or_else(|| b"no loop device specified".to_vec())?;
            wanted.node = Some(device::node(&device));
            file = operands.next();
        }
        self.check(&wanted)?;
        let Wanted { action: Some(action), .. } = wanted else { return Ok(()) };
        match (action, &wanted.device, file) {
            (Action::Attach, _, Some(file)) => self.attach(&wanted, &file),
            (Action::Find, ..) => self.find(),
            (Action::List, ..) => self.list(&wanted),
            (Action::DetachAll, ..) => self.detach_all(),
            (Action::Show, Some(device), _) => self.show(&wanted, device),
            (Action::Remove, Some(device), _) => remove(device),
            (Action::Detach, Some(_), _) => self.detach(wanted.device, operands),
            (Action::SetCapacity, Some(device), _) => set(device, "set capacity", |open| driver::set_capacity(open)),
            (Action::SetDirectIo, Some(device), _) => {
                set(device, "set direct io", |open| driver::set_direct_io(open, wanted.direct_io == Some(true)))
            }
            (Action::SetBlockSize, Some(device), _) => set(device, "set logical block size", |open| {
                driver::set_block_size(open, wanted.block_size.unwrap_or_default())
            }),
            _ => Ok(()),
        }
    }

    /// Reads the options; none when help or the version was asked for, and given.
    fn wanted(&mut self, full_name: &[u8], arguments: Vec<OsString>) -> Result<Option<(Wanted, Vec<OsString>)>> {
        let mut words = Words::new(words::LONG, words::SHORT, arguments);
        let mut wanted = Wanted::default();
        let mut chosen: [Option<Word>; words::EXCLUSIVE.len()] = [None; words::EXCLUSIVE.len()];
        loop {
            let (word, argument) = match words.next_option() {
                Ok(Some(option)) => option,
                Ok(None) => return Ok(Some((wanted, words.operands()))),
                Err(message) => {
                    self.complain(full_name, &message);
                    self.complain_plainly(&format!("Try '{} --help' for more information.", self.name));
                    return Err(Vec::new());
                }
            };
            for (group, chosen) in words::EXCLUSIVE.iter().zip(&mut chosen) {
                if group.contains(&word) && chosen.replace(word).is_some_and(|other| other != word) {
                    let long = |word: &Word| words::LONG.iter().find(|long| long.option == *word);
                    let names = group.iter().filter_map(long).map(|long| format!(" --{}", long.name));
                    return Err(format!("mutually exclusive arguments:{}", names.collect::<String>()).into_bytes());
                }
            }
            let given = argument.clone().unwrap_or_default();
            match word {
                Word::All => wanted.action = Some(Action::List),
                Word::Associated => (wanted.action, wanted.associated) = (Some(Action::List), argument),
                Word::SetCapacity => (wanted.action, wanted.device) = (Some(Action::SetCapacity), Some(used(&given)?)),
                Word::Detach => (wanted.action, wanted.device) = (Some(Action::Detach), Some(used(&given)?)),
                Word::Remove => (wanted.action, wanted.device) = (Some(Action::Remove), Some(used(&given)?)),
                Word::DetachAll => wanted.action = Some(Action::DetachAll),
                Word::Find => wanted.action = Some(Action::Find),
                Word::NoOverlap => wanted.no_overlap = true,
                Word::Offset => wanted.offset = Some(bytes(&given, "offset")?),
                Word::SizeLimit => wanted.sizelimit = bytes(&given, "size")?,
                Word::SectorSize => wanted.block_size = Some(bytes(&given, "logical block size")?),
                Word::PartScan => wanted.flags = wanted.flags.with(Flags::PARTSCAN, true),
                Word::ReadOnly => wanted.flags = wanted.flags.with(Flags::READ_ONLY, true),
                Word::DirectIo => {
                    wanted.direct_io = Some(match argument.as_ref().map(|argument| argument.as_bytes()) {
                        None | Some(b"on") => true,
                        Some(b"off") => false,
                        Some(other) => return Err([b"argument error: '", other, b"'"].concat()),
                    });
                }
                Word::Show => wanted.show = true,
                Word::Verbose => {}
                Word::Json => wanted.json = true,
                Word::List => wanted.list = true,
                Word::NoHeadings => wanted.without_headings = true,
                Word::Output => (wanted.output, wanted.list) = (argument, true),
                Word::OutputAll => wanted.output_all = true,
                Word::Raw => wanted.raw = true,
                Word::LoopRef => wanted.loop_ref = argument,
                Word::Help => {
                    self.out.extend(words::help(&self.name).into_bytes());
                    return Ok(None);
                }
                Word::Version => {
                    self.out.extend(format!("{} from util-linux {}\n", self.name, words::VERSION).into_bytes());
                    return Ok(None);
                }
            }
        }
    }

    /// Refuses options where they have no meaning.
    fn check(&self, wanted: &Wanted) -> Result<()> {
        let action = wanted.action;
        if action == Some(Action::Attach) {
            return Ok(());
        }
        let direct_io = wanted.direct_io == Some(true) && action != Some(Action::SetDirectIo);
        if wanted.sizelimit != 0 || wanted.flags != Flags::default() || wanted.show || direct_io {
            let message = "the options --{sizelimit,partscan,read-only,show} are allowed during loop device setup only";
            return Err(message.as_bytes().to_vec());
        }
        if wanted.offset.is_some() && (action != Some(Action::List) || wanted.associated.is_none()) {
            return Err(b"the option --offset is not allowed in this context".to_vec());
        }
        columns(wanted).map(drop)
    }

    fn list(&mut self, wanted: &Wanted) -> Result<()> {
        let identity = wanted.associated.as_ref().map(|file| identity(file));
        let shown = |device: &Device| match (&identity, &wanted.associated) {
            (Some(identity), Some(file)) => {
                device.is_bound_to(*identity, absolute(file).as_os_str())
                    && wanted.offset.is_none_or(|offset| device.offset() == Some(offset))
            }
            _ => true,
        };
        let devices: Vec<Device> = Device::used().filter(shown).collect();
        if wanted.list {
            return self.table(wanted, &devices);
        }
        for device in &devices {
            // One that went meanwhile is not listed.
            if let Ok(line) = list::line(device) {
                self.out.extend(line);
            }
        }
        Ok(())
    }

    fn show(&mut self, wanted: &Wanted, device: &Device) -> Result<()> {
        if wanted.list {
            return self.table(wanted, std::slice::from_ref(device));
        }
        let line = list::line(device).map_err(|errno| said(device.path.as_os_str(), "", errno))?;
        self.out.extend(line);
        Ok(())
    }

    fn table(&mut self, wanted: &Wanted, devices: &[Device]) -> Result<()> {
        let kinds = columns(wanted)?;
        let row = |device: &Device| kinds.iter().map(|kind| (kind.cell)(device)).collect();
        let table = Table {
            columns: kinds.iter().map(|kind| kind.column).collect(),
            rows: devices.iter().map(row).collect(),
            without_headings: wanted.without_headings,
        };
        let form = match (wanted.json, wanted.raw) {
            (true, _) => Form::Json("loopdevices"),
            (false, true) => Form::Raw,
            (false, false) => Form::Columns,
        };
        self.out.extend(table.render(form, Output::standard()));
        Ok(())
    }

    fn find(&mut self) -> Result<()> {
        let path = free().map_err(|errno| said(OsStr::new("cannot find an unused loop device"), "", errno))?;
        self.print(path.as_os_str());
        Ok(())
    }

    fn attach(&mut self, wanted: &Wanted, file: &OsStr) -> Result<()> {
        if wanted.no_overlap
            && let Some(device) = self.overlapping(wanted, file)?
        {
            if wanted.show {
                self.print(device.path.as_os_str());
            }
            return Ok(());
        }
        let failed = |name: &OsStr, errno| said(name, ": failed to set up loop device", errno);
        let mut attempt = 0;
        let path = loop {
            let path = match &wanted.node {
                Some(node) => node.clone(),
                None => free().map_err(|_| b"cannot find an unused loop device".to_vec())?,
            };
            attempt += 1;
            match attach_at(wanted, file, &path) {
                Ok(()) => break path,
                // Somebody was quicker: there are others.
                Err(Errno::BUSY) if wanted.node.is_none() && attempt < ATTEMPTS_MAX => {}
                Err(errno) => {
                    // The one of the two that cannot be opened.
                    let write = !wanted.flags.contains(Flags::READ_ONLY);
                    let opened = |node: &&PathBuf| File::options().read(true).write(write).open(node);
                    let node = wanted.node.as_ref().filter(|node| opened(node).is_err());
                    return Err(failed(node.map_or(file, |node| node.as_os_str()), errno));
                }
            }
        };
        self.warn_of_size(wanted, file);
        if wanted.show {
            self.print(path.as_os_str());
        }
        Ok(())
    }

    /// The device that has the very bytes that are wanted, if any.
    fn overlapping(&self, wanted: &Wanted, file: &OsStr) -> Result<Option<Device>> {
        let refused = |kind| Err([file.as_bytes(), b": overlapping ", kind, b"loop device exists"].concat());
        let identity = identity(file);
        // Who may not ask the driver cannot attach either, and is told that.
        let bound = |device: &Device| device.info().is_ok_and(|info| identity == Some((info.device, info.inode)));
        for device in Device::used().filter(bound) {
            let (start, limit) = (wanted.offset.unwrap_or(0), wanted.sizelimit);
            let (other_start, other_limit) = (device.offset().unwrap_or(0), device.sizelimit().unwrap_or(0));
            let end = |start: u64, limit| if limit == 0 { u64::MAX } else { start.saturating_add(limit) };
            if start >= end(other_start, other_limit) || other_start >= end(start, limit) {
                continue;
            }
            if (start, limit) != (other_start, other_limit) || wanted.node.is_some() {
                return refused(b"");
            }
            if device.number("ro") == Some(1) && !wanted.flags.contains(Flags::READ_ONLY) {
                return refused(b"read-only ");
            }
            return Ok(Some(device));
        }
        Ok(None)
    }

    fn warn_of_size(&mut self, wanted: &Wanted, file: &OsStr) {
        let Ok(metadata) = std::fs::metadata(file) else { return };
        let size = match wanted.sizelimit {
            _ if !metadata.is_file() => return,
            0 => metadata.len().wrapping_sub(wanted.offset.unwrap_or(0)),
            limit => limit,
        };
        let about = if size < 512 {
            "file is smaller than 512 bytes; the loop device may be useless or invisible for system tools."
        } else if !size.is_multiple_of(512) {
            "file does not fit into a 512-byte sector; the end of the file will be ignored."
        } else {
            return;
        };
        self.warn(&[file.as_bytes(), b": Warning: ", about.as_bytes()].concat());
    }

    /// Detaches the device of the option, then those that follow.
    fn detach(&mut self, first: Option<Device>, others: impl Iterator<Item = OsString>) -> Result<()> {
        let Some(mut device) = first else { return Ok(()) };
        self.try_detach(&device);
        for name in others {
            match used(&name) {
                Ok(other) => device = other,
                // Then the one before is tried once more.
                Err(message) => self.warn(&message),
            }
            self.try_detach(&device);
        }
        Ok(())
    }

    fn detach_all(&mut self) -> Result<()> {
        // All at first: the folder changes while they go.
        for device in Device::used().collect::<Vec<_>>() {
            self.try_detach(&device);
        }
        Ok(())
    }

    fn try_detach(&mut self, device: &Device) {
        if let Err(errno) = device.open(false).and_then(driver::clear_fd) {
            self.status = 1;
            self.warn(&said(device.path.as_os_str(), ": detach failed", errno));
        }
    }

    fn print(&mut self, name: &OsStr) {
        self.out.extend_from_slice(name.as_bytes());
        self.out.push(b'\n');
    }

    fn warn(&self, message: &[u8]) {
        if !message.is_empty() {
            self.complain(self.name.as_bytes(), message);
        }
    }

    fn complain(&self, name: &[u8], message: &[u8]) {
        let _ = std::io::stderr().write_all(&[name, b": ", message, b"\n"].concat());
    }

    fn complain_plainly(&self, line: &str) {
        let _ = std::io::stderr().write_all(format!("{line}\n").as_bytes());
    }

    fn flush(&mut self) {
        let mut out = std::io::stdout().lock();
        if let Err(error) = out.write_all(&self.out).and_then(|()| out.flush()) {
            // Nobody reads any more: that is no failure.
            if error.kind() != std::io::ErrorKind::BrokenPipe {
                self.status = 1;
                self.warn(&said(OsStr::new("write error"), "", errno(&error)));
            }
        }
    }
}

/// A message about something: `NAME what: why`.
fn said(name: &OsStr, what: &str, errno: Errno) -> Failed {
    let why = std::io::Error::from(errno).to_string();
    let why = why.split(" (os error ").next().unwrap_or_default().to_owned();
    [name.as_bytes(), what.as_bytes(), b": ", why.as_bytes()].concat()
}

/// The device that is meant.
fn used(name: &OsStr) -> Result<Device> {
    Device::named(name).map_err(|errno| said(name, ": failed to use device", errno))
}

fn bytes(text: &OsStr, what: &str) -> Result<u64> {
    let name = [b"failed to parse ", what.as_bytes(), b": '", text.as_bytes(), b"'"].concat();
    number::bytes(text.as_bytes()).map_err(|wrong| said(OsStr::from_bytes(&name), "", wrong.errno()))
}

/// The columns that are wanted.
fn columns(wanted: &Wanted) -> Result<Vec<&'static list::Kind>> {
    let find = |name: &&str| list::KINDS.iter().find(|kind| kind.column.name == *name);
    let mut columns: Vec<_> = list::DEFAULT.iter().filter_map(find).collect();
    if wanted.output_all {
        columns = list::KINDS.iter().filter(|kind| !kind.newer).collect();
    }
    match &wanted.output {
        Some(names) => list::columns(names.as_bytes(), columns),
        None => Ok(columns),
    }
}

/// Device and inode of a file.
fn identity(file: &OsStr) -> Option<(u64, u64)> {
    std::fs::metadata(file).ok().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The name of a file as the kernel would say it.
fn absolute(file: &OsStr) -> PathBuf {
    std::fs::canonicalize(file).unwrap_or_else(|_| PathBuf::from(file))
}

/// A device that is free now: the driver names one, or for who may not ask it, the first that is not bound.
fn free() -> std::result::Result<PathBuf, Errno> {
    let node = |number: u32| PathBuf::from(format!("/dev/loop{number}"));
    if let Ok(control) = File::options().read(true).write(true).open("/dev/loop-control") {
        return driver::get_free(control).map(node);
    }
    let unbound = |path: &PathBuf| Device::named(path.as_os_str()).is_ok_and(|device| device.offset().is_none());
    (0..export::loop_device::NUMBER_MAX).map(node).take_while(|path| path.exists()).find(unbound).ok_or(Errno::NODEV)
}

/// Attaches a file to a device.
fn attach_at(wanted: &Wanted, file: &OsStr, path: &Path) -> std::result::Result<(), Errno> {
    let direct_io = wanted.direct_io == Some(true);
    let open = |write: bool| {
        let mut options = File::options();
        if direct_io {
            options.custom_flags(rustix::fs::OFlags::DIRECT.bits().cast_signed());
        }
        options.read(true).write(write).open(file).map_err(|error| errno(&error))
    };
    let mut read_only = wanted.flags.contains(Flags::READ_ONLY);
    let backing = match open(!read_only) {
        Err(Errno::ROFS | Errno::ACCESS) if !read_only => {
            read_only = true;
            open(false)?
        }
        opened => opened?,
    };
    let mut info = Info { offset: wanted.offset.unwrap_or(0), sizelimit: wanted.sizelimit, ..Info::ZERO };
    info.flags = wanted.flags.with(Flags::READ_ONLY, read_only).with(Flags::DIRECT_IO, direct_io).0;
    let name = wanted.loop_ref.clone().unwrap_or_else(|| absolute(file).into_os_string());
    info.set_file_name(name.as_bytes());
    let device = match File::options().read(true).write(!read_only).open(path) {
        Ok(device) => device,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            export::loop_device::Device::named(path)
                .and_then(|device| export::loop_device::Device::open(device.number, read_only))
                .map_err(|_| Errno::NOENT)?
                .1
        }
        Err(error) => return Err(errno(&error)),
    };
    // The kernel's structure has 32 bits for it, and so has losetup.
    bind(&device, &backing, wanted.block_size.unwrap_or(0) as u32, &info)
}

/// Changes something of a device that is bound.
fn set(device: &Device, what: &str, call: impl FnOnce(&File) -> std::result::Result<(), Errno>) -> Result<()> {
    let open = device.open(true);
    open.and_then(|open| call(&open)).map_err(|errno| said(device.path.as_os_str(), &format!(": {what} failed"), errno))
}

fn remove(device: &Device) -> Result<()> {
    let done = Control::open().and_then(|control| control.remove(device.numbers().1));
    done.map_err(|error| {
        said(device.path.as_os_str(), ": remove failed", Errno::from_raw_os_error(error.kind().errno()))
    })
}
