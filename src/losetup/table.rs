//! Tables as util-linux prints them: in columns, raw, and as JSON.
//!
//! Columns are as wide as their widest cell and one space apart; numbers stand on the right; the last column is not
//! filled up. On a terminal that is too narrow, columns of names give way from left to right, a character at a time, down to
//! the width of their headings; a cell that is then too wide is written whole, and the row goes on below it.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::ffi::OsStrExt as _;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Type {
    /// Words.
    Text,
    /// A number.
    Number,
    /// `0` or `1`.
    Flag,
}

/// A column.
#[derive(Debug, Clone, Copy)]
pub struct Column {
    /// Its heading.
    pub name: &'static str,
    /// What it holds.
    pub kind: Type,
    /// Whether it stands on the right.
    pub right: bool,
    /// Whether it gives way on a narrow terminal.
    pub yields: bool,
}

/// How a table is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// In columns.
    Columns,
    /// Cells one space apart, with what is not plain escaped.
    Raw,
    /// JSON, under this name.
    Json(&'static str),
}

/// A table; a cell may be empty.
#[derive(Debug)]
pub struct Table {
    /// The columns.
    pub columns: Vec<Column>,
    /// The rows, each with a cell for each column.
    pub rows: Vec<Vec<Option<Vec<u8>>>>,
    /// Whether headings are left out.
    pub without_headings: bool,
}

/// Where a table is written to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Output {
    /// Columns of the terminal; none when it is not one.
    pub width: Option<usize>,
    /// Whether its characters are UTF-8.
    pub utf8: bool,
}

impl Output {
    /// Standard output.
    pub fn standard() -> Self {
        let stdout = std::io::stdout();
        let width = stdout.is_terminal().then(|| {
            let asked = rustix::termios::tcgetwinsize(&stdout).map_or(0, |size| usize::from(size.ws_col));
            let told = || std::env::var("COLUMNS").ok()?.parse().ok().filter(|width| *width > 0);
            if asked > 0 { asked } else { told().unwrap_or(80) }
        });
        Self { width, utf8: is_utf8() }
    }
}

/// Whether the locale's characters are UTF-8.
fn is_utf8() -> bool {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let locale: OsString = set("LC_ALL").or_else(|| set("LC_CTYPE")).or_else(|| set("LANG")).unwrap_or_default();
    let codeset = locale.as_bytes().split(|byte| *byte == b'.').nth(1).unwrap_or_default();
    let codeset = codeset.split(|byte| *byte == b'@').next().unwrap_or_default().to_ascii_lowercase();
    matches!(codeset.as_slice(), b"utf-8" | b"utf8")
}

impl Table {
    /// All bytes of it.
    pub fn render(&self, form: Form, output: Output) -> Vec<u8> {
        match form {
            Form::Json(name) => self.json(name),
            _ if self.rows.is_empty() => Vec::new(),
            Form::Raw => self.raw(),
            Form::Columns => self.aligned(output),
        }
    }

    fn raw(&self) -> Vec<u8> {
        let mut out = Vec::new();
        let headings = self.columns.iter().map(|column| column.name.as_bytes().to_vec());
        if !self.without_headings {
            out.extend(headings.collect::<Vec<_>>().join(&b' '));
            out.push(b'\n');
        }
        for row in &self.rows {
            let cells = row.iter().map(|cell| cell.as_deref().map(raw).unwrap_or_default());
            out.extend(cells.collect::<Vec<_>>().join(&b' '));
            out.push(b'\n');
        }
        out
    }

    fn json(&self, name: &str) -> Vec<u8> {
        let mut out = format!("{{\n   \"{name}\": [\n").into_bytes();
        for (number, row) in self.rows.iter().enumerate() {
            out.extend_from_slice(if number == 0 { b"      {" } else { b",{" });
            for (number, (column, cell)) in self.columns.iter().zip(row).enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                out.extend_from_slice(format!("\n         \"{}\": ", column.name.to_ascii_lowercase()).as_bytes());
                match (cell, column.kind) {
                    (None, _) => out.extend_from_slice(b"null"),
                    (Some(cell), Type::Number) => out.extend_from_slice(cell),
                    (Some(cell), Type::Flag) => out.extend_from_slice(if cell == b"0" { b"false" } else { b"true" }),
                    (Some(cell), Type::Text) => out.extend(json_text(cell)),
                }
            }
            out.extend_from_slice(b"\n      }");
        }
        out.extend_from_slice(b"\n   ]\n}\n");
        out
    }

    fn aligned(&self, output: Output) -> Vec<u8> {
        let cells: Vec<Vec<Cell>> =
            std::iter::once(self.columns.iter().map(|column| Cell::heading(column.name)).collect())
                .chain(
                    self.rows
                        .iter()
                        .map(|row| row.iter().map(|cell| Cell::new(cell.as_deref(), output.utf8)).collect()),
                )
                .collect();
        let widths = self.widths(&cells, output.width);
        let mut out = Vec::new();
        for row in cells.iter().skip(usize::from(self.without_headings)) {
            let mut start = 0;
            for (number, (cell, (column, width))) in row.iter().zip(self.columns.iter().zip(&widths)).enumerate() {
                let last = number + 1 == row.len();
                let fill = width.saturating_sub(cell.width);
                if column.right {
                    out.extend(std::iter::repeat_n(b' ', fill));
                }
                out.extend_from_slice(&cell.text);
                start += width + 1;
                if last {
                    break;
                }
                if !column.right {
                    out.extend(std::iter::repeat_n(b' ', fill));
                }
                if cell.width > *width {
                    out.push(b'\n');
                    out.extend(std::iter::repeat_n(b' ', start));
                } else {
                    out.push(b' ');
                }
            }
            out.push(b'\n');
        }
        out
    }

    fn widths(&self, cells: &[Vec<Cell>], terminal: Option<usize>) -> Vec<usize> {
        let of =
            |row: Option<&Vec<Cell>>, column: usize| row.and_then(|row| row.get(column)).map_or(0, |cell| cell.width);
        let narrowest: Vec<usize> = (0..self.columns.len()).map(|column| of(cells.first(), column)).collect();
        let widest = |column: usize| cells.iter().map(|row| of(Some(row), column)).max().unwrap_or(0);
        let mut widths: Vec<usize> = (0..self.columns.len()).map(widest).collect();
        let Some(terminal) = terminal else { return widths };
        let mut total = widths.iter().sum::<usize>() + widths.len().saturating_sub(1);
        while total > terminal {
            let before = total;
            for ((column, width), narrowest) in self.columns.iter().zip(&mut widths).zip(&narrowest) {
                if column.yields && total > terminal && *width > *narrowest {
                    *width -= 1;
                    total -= 1;
                }
            }
            if total == before {
                break;
            }
        }
        widths
    }
}

/// A cell as it is printed.
#[derive(Debug)]
struct Cell {
    text: Vec<u8>,
    width: usize,
}

impl Cell {
    fn heading(name: &str) -> Self {
        Self { text: name.as_bytes().to_vec(), width: name.len() }
    }

    fn new(cell: Option<&[u8]>, utf8: bool) -> Self {
        let mut made = Self { text: Vec::new(), width: 0 };
        for chunk in cell.unwrap_or_default().utf8_chunks() {
            let mut characters = chunk.valid().chars().peekable();
            while let Some(character) = characters.next() {
                // A backslash only where it would look like an escape.
                let ambiguous = character == '\\' && characters.peek() == Some(&'x');
                let mut bytes = [0; 4];
                let bytes = character.encode_utf8(&mut bytes).as_bytes();
                match unicode_width::UnicodeWidthChar::width(character) {
                    Some(width) if !ambiguous && (character.is_ascii() || utf8) => {
                        made.text.extend_from_slice(bytes);
                        made.width += width;
                    }
                    _ => bytes.iter().for_each(|byte| made.escape(*byte)),
                }
            }
            chunk.invalid().iter().for_each(|byte| made.escape(*byte));
        }
        made
    }

    fn escape(&mut self, byte: u8) {
        self.text.extend_from_slice(&escaped(byte));
        self.width += 4;
    }
}

fn escaped(byte: u8) -> [u8; 4] {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    [b'\\', b'x', DIGITS[usize::from(byte >> 4)], DIGITS[usize::from(byte & 15)]]
}

/// A raw cell: blanks, backslashes and what is not printable ASCII are escaped.
fn raw(cell: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(cell.len());
    for byte in cell {
        if byte.is_ascii_graphic() && *byte != b'\\' { out.push(*byte) } else { out.extend_from_slice(&escaped(*byte)) }
    }
    out
}

/// A string of JSON; what is no UTF-8 goes through as it is.
fn json_text(cell: &[u8]) -> Vec<u8> {
    let mut out = vec![b'"'];
    for byte in cell {
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x0c => out.extend_from_slice(b"\\f"),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\r' => out.extend_from_slice(b"\\r"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..0x20 => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
    out.push(b'"');
    out
}
