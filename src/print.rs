//! All that is written for people and scripts: colours, tables, JSON, errors.

#![allow(dead_code, reason = "the commands that print more are on their way")]

use std::error::Error;
use std::fmt::Write as _;
use std::io::{self, IsTerminal as _, Write as _};
use std::sync::OnceLock;

/// When to use colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless NO_COLOR is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

static COLOR: OnceLock<Color> = OnceLock::new();

/// Takes the choice of the command line; called once.
pub fn set_color(color: Color) {
    let _ = COLOR.set(color);
}

fn colored(terminal: bool) -> bool {
    match COLOR.get().copied().unwrap_or_default() {
        Color::Always => true,
        Color::Never => false,
        Color::Auto => terminal && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()),
    }
}

/// How a word looks; nothing but the word where there are no colours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// As it is.
    Plain,
    /// A heading.
    Bold,
    /// Less important.
    Dim,
    /// It works.
    Good,
    /// It does not.
    Bad,
    /// It could be better.
    Warning,
    /// A name to look at: a folder, a device.
    Name,
    /// What points elsewhere.
    Link,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Self::Plain => "",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Good => "32",
            Self::Bad => "1;31",
            Self::Warning => "33",
            Self::Name => "1;34",
            Self::Link => "1;36",
        }
    }
}

/// `text` in a style, for standard output.
pub fn styled(style: Style, text: &str) -> String {
    paint(style, text, colored(io::stdout().is_terminal()))
}

/// Bytes in a style, for standard output.
pub fn styled_bytes(style: Style, bytes: Vec<u8>) -> Vec<u8> {
    if style == Style::Plain || !colored(io::stdout().is_terminal()) {
        return bytes;
    }
    [format!("\x1b[{}m", style.code()).as_bytes(), &bytes, b"\x1b[0m"].concat()
}

fn paint(style: Style, text: &str, colored: bool) -> String {
    if colored && style != Style::Plain { format!("\x1b[{}m{text}\x1b[0m", style.code()) } else { text.to_owned() }
}

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// Writes bytes to standard output.
///
/// # Errors
/// What writing says; a pipe that nobody reads any more too, which [`is_broken_pipe`] tells apart.
pub fn bytes(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes a line to standard output.
///
/// # Errors
/// As [`bytes`].
pub fn line(text: &str) -> io::Result<()> {
    bytes(format!("{text}\n").as_bytes())
}

/// Writes JSON, indented, and a line feed.
///
/// # Errors
/// As [`bytes`].
pub fn json(value: &impl serde::Serialize) -> io::Result<()> {
    let mut text = serde_json::to_vec_pretty(value).map_err(io::Error::other)?;
    text.push(b'\n');
    bytes(&text)
}

/// Bytes of unknown origin as one line of text: control characters and what is no UTF-8 are escaped, so that a name
/// inside an image cannot write to the terminal.
pub fn escaped(name: &[u8]) -> String {
    fs::path::Printable(name).to_string()
}

/// A word as it can be typed in a shell.
pub fn for_shell(word: &[u8]) -> String {
    let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"_@%+=:,./-".contains(byte);
    match std::str::from_utf8(word) {
        Ok(text) if !text.is_empty() && word.iter().all(plain) => text.to_owned(),
        Ok(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        // What a terminal cannot show or would obey.
        _ => {
            let shown =
                word.iter().map(|byte| if plain(byte) { char::from(*byte).into() } else { format!("\\x{byte:02x}") });
            format!("$'{}'", shown.collect::<String>())
        }
    }
}

/// A number of bytes in powers of 1024 with one digit after the point: `1.4 GiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut unit = 0;
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS.get(unit).copied().unwrap_or("EiB"))
}

/// Rows of cells in columns two spaces apart, as wide as they need; the last column is not filled up.
#[derive(Debug, Default)]
pub struct Table(Vec<Vec<(Style, String)>>);

impl Table {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a row.
    pub fn row(&mut self, cells: impl IntoIterator<Item = (Style, String)>) {
        self.0.push(cells.into_iter().collect());
    }

    /// The lines, with colours where standard output has them.
    pub fn render(&self) -> String {
        self.render_as(colored(io::stdout().is_terminal()))
    }

    fn render_as(&self, colored: bool) -> String {
        let columns = self.0.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.0.iter().filter_map(|row| row.get(column)).map(|(_, text)| text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = String::new();
        for row in &self.0 {
            for (column, ((style, text), width)) in row.iter().zip(&widths).enumerate() {
                out.push_str(&paint(*style, text, colored));
                if column + 1 < row.len() {
                    let fill = width.saturating_sub(text.chars().count()) + 2;
                    out.extend(std::iter::repeat_n(' ', fill));
                }
            }
            out.push('\n');
        }
        out
    }
}

/// Whether what failed is writing to a pipe that nobody reads any more: `loopbox ls … | head`.
pub fn is_broken_pipe(error: &(dyn Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe) {
            return true;
        }
        next = error.source();
    }
    false
}

/// An error and its chain of sources as one line.
pub fn error_text(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        let said = source.to_string();
        // std repeats "(os error 2)" for machines; people have the words.
        let said = said.split(" (os error ").next().unwrap_or(&said).to_owned();
        if !text.ends_with(&said) {
            let _ = write!(text, ": {said}");
        }
        next = source.source();
    }
    text.replace('\n', " ")
}

/// Writes an error to standard error, as one line.
pub fn error(error: &dyn Error) {
    let name = paint(Style::Bad, "loopbox:", colored(io::stderr().is_terminal()));
    let _ = writeln!(io::stderr().lock(), "{name} {}", error_text(error));
}

/// Writes a warning to standard error, as one line.
#[allow(dead_code, reason = "for commands that go on after a part failed")]
pub fn warning(text: &str) {
    let name = paint(Style::Warning, "loopbox:", colored(io::stderr().is_terminal()));
    let _ = writeln!(io::stderr().lock(), "{name} {text}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_for_a_shell_are_quoted_where_they_need_it() {
        for (word, shown) in [
            (&b"disk.img,partition=2:/etc/fstab"[..], "disk.img,partition=2:/etc/fstab"),
            (b"", "''"),
            (b"two words", "'two words'"),
            (b"it's $HOME", r"'it'\''s $HOME'"),
            (b"\x1b[2J\xff", r"$'\x1b\x5b2J\xff'"),
        ] {
            assert_eq!(for_shell(word), shown);
        }
    }

    #[test]
    fn sizes_have_one_digit_after_the_point() {
        let sizes = [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1536, "1.5 KiB"), (u64::MAX, "16.0 EiB")];
        for (bytes, text) in sizes {
            assert_eq!(size(bytes), text);
        }
        assert_eq!(size(1024 * 1024 - 1), "1.0 MiB");
    }

    #[test]
    fn names_cannot_write_to_the_terminal() {
        assert_eq!(escaped(b"a\x1b[2Jb\nc\xff"), "a\\u{1b}[2Jb\\nc\\xff");
        assert_eq!(escaped("日本\u{202e}語".as_bytes()), "日本\\u{202e}語");
    }

    #[test]
    fn columns_are_as_wide_as_they_need() {
        let mut table = Table::new();
        table.row([(Style::Bold, "NAME".to_owned()), (Style::Plain, "x".to_owned())]);
        table.row([(Style::Plain, "ü".to_owned()), (Style::Plain, "y".to_owned())]);
        assert_eq!(table.render_as(false), "NAME  x\nü     y\n");
    }

    #[test]
    fn an_error_is_one_line_with_its_chain() {
        let io = io::Error::from_raw_os_error(13);
        let error = block::Error::io("opening disk.img", io).context("attach");
        assert_eq!(error_text(&error), "attach: opening disk.img: Permission denied");
        assert!(!is_broken_pipe(&error));
        assert!(is_broken_pipe(&block::Error::io("writing", io::Error::from_raw_os_error(32))));
    }
}
