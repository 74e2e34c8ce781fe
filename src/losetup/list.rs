//! What is listed: the columns, and the lines of old.

use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;

use super::device::Device;
use super::table::{Column, Type};

/// A column that can be asked for.
#[derive(Debug, Clone, Copy)]
pub struct Kind {
    /// How it is printed.
    pub column: Column,
    /// Its line of the help.
    pub about: &'static str,
    /// Whether it came after 2.38: then it is there when it is asked for by name.
    pub newer: bool,
    /// The cell of a device.
    pub cell: fn(&Device) -> Option<Vec<u8>>,
}

const fn column(name: &'static str, kind: Type, about: &'static str, cell: fn(&Device) -> Option<Vec<u8>>) -> Kind {
    let right = !matches!(kind, Type::Text);
    Kind { column: Column { name, kind, right, yields: false }, about, newer: false, cell }
}

/// A column of names, which gives way on a narrow terminal.
const fn names(name: &'static str, about: &'static str, cell: fn(&Device) -> Option<Vec<u8>>) -> Kind {
    let column = Column { name, kind: Type::Text, right: false, yields: true };
    Kind { column, about, newer: false, cell }
}

const fn newer(name: &'static str, kind: Type, about: &'static str, cell: fn(&Device) -> Option<Vec<u8>>) -> Kind {
    Kind { newer: true, ..column(name, kind, about, cell) }
}

fn number(value: impl std::fmt::Display) -> Option<Vec<u8>> {
    Some(value.to_string().into_bytes())
}

fn flag(value: bool) -> Option<Vec<u8>> {
    Some(vec![b'0' + u8::from(value)])
}

/// The device that the file lies on.
fn back_numbers(device: &Device) -> Option<(u32, u32)> {
    let info = device.info().ok()?;
    Some((rustix::fs::major(info.device), rustix::fs::minor(info.device)))
}

/// All columns, in the order of `--output-all`.
pub const KINDS: &[Kind] = &[
    names("NAME", "loop device name", |device| Some(device.path.as_os_str().as_bytes().to_vec())),
    column("AUTOCLEAR", Type::Flag, "autoclear flag set", |device| flag(device.number("loop/autoclear") == Some(1))),
    names("BACK-FILE", "device backing file", |device| Some(device.backing_file()?.as_bytes().to_vec())),
    column("BACK-INO", Type::Number, "backing file inode number", |device| number(device.info().ok()?.inode)),
    column("BACK-MAJ:MIN", Type::Text, "backing file major:minor device number", |device| {
        let (major, minor) = back_numbers(device)?;
        Some(format!("{major:8}:{minor:<3}").into_bytes())
    }),
    column("MAJ:MIN", Type::Text, "loop device major:minor number", |device| {
        let (major, minor) = device.numbers();
        Some(format!("{major:3}:{minor:<3}").into_bytes())
    }),
    column("OFFSET", Type::Number, "offset from the beginning", |device| number(device.offset()?)),
    // Of a device that is not bound util-linux says that it is set.
    column("PARTSCAN", Type::Flag, "partscan flag set", |device| flag(device.number("loop/partscan") != Some(0))),
    column("RO", Type::Flag, "read-only device", |device| flag(device.number("ro") == Some(1))),
    column("SIZELIMIT", Type::Number, "size limit of the file in bytes", |device| number(device.sizelimit()?)),
    column("DIO", Type::Flag, "access backing file with direct-io", |device| {
        flag(device.number("loop/dio") == Some(1))
    }),
    column("LOG-SEC", Type::Number, "logical sector size in bytes", |device| {
        number(device.number("queue/logical_block_size")?)
    }),
    newer("MAJ", Type::Number, "loop device major number", |device| number(device.numbers().0)),
    newer("MIN", Type::Number, "loop device minor number", |device| number(device.numbers().1)),
    newer("BACK-MAJ", Type::Number, "backing file major device number", |device| number(back_numbers(device)?.0)),
    newer("BACK-MIN", Type::Number, "backing file minor device number", |device| number(back_numbers(device)?.1)),
    newer("REF", Type::Text, "loop device reference string", |device| {
        let info = device.info().ok()?;
        (!info.file_name().is_empty()).then(|| info.file_name().to_vec())
    }),
];

/// What is listed unless columns are named.
pub const DEFAULT: &[&str] = &["NAME", "SIZELIMIT", "OFFSET", "AUTOCLEAR", "RO", "BACK-FILE", "DIO", "LOG-SEC"];

/// The most columns.
const COLUMNS_MAX: usize = 24;

/// The column of a name, in capital letters or small ones.
fn named(name: &[u8]) -> Option<&'static Kind> {
    KINDS.iter().find(|kind| kind.column.name.as_bytes().eq_ignore_ascii_case(name))
}

/// The columns of a list of names; `+` before it adds to `columns`.
///
/// # Errors
/// The message; an empty one where util-linux keeps silent.
pub fn columns(list: &[u8], mut columns: Vec<&'static Kind>) -> Result<Vec<&'static Kind>, Vec<u8>> {
    let mut rest = match list.strip_prefix(b"+") {
        Some(rest) => rest,
        None => {
            columns.clear();
            list
        }
    };
    if rest.is_empty() {
        return Err(Vec::new());
    }
    while !rest.is_empty() {
        // A comma at the very end belongs to the name before it.
        let end = rest.iter().position(|byte| *byte == b',').filter(|end| end + 1 < rest.len()).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        if name.is_empty() || columns.len() >= COLUMNS_MAX {
            return Err(Vec::new());
        }
        columns.push(named(name).ok_or_else(|| [b"unknown column: ", rest].concat())?);
        rest = after.get(1..).unwrap_or_default();
    }
    Ok(columns)
}

/// The line of old about a device.
///
/// # Errors
/// When it is not bound.
pub fn line(device: &Device) -> Result<Vec<u8>, Errno> {
    let file = device.backing_file().ok_or(Errno::NOENT)?;
    let mut line = device.path.as_os_str().as_bytes().to_vec();
    match device.info() {
        Ok(info) => line.extend(format!(": [{:04}]:{} (", info.device, info.inode).into_bytes()),
        Err(_) => line.extend_from_slice(b": []: ("),
    }
    line.extend_from_slice(file.as_bytes());
    line.push(b')');
    for (name, value) in [("offset", device.offset()), ("sizelimit", device.sizelimit())] {
        if let Some(value) = value.filter(|value| *value != 0) {
            line.extend(format!(", {name} {value}").into_bytes());
        }
    }
    line.push(b'\n');
    Ok(line)
}
