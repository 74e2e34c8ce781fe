//! Files as `ls` and `tree` show them.

use std::io::IsTerminal as _;

use fs::{FileType, Stat, Time};

use crate::print::{self, Style};

/// What a type is called in JSON.
pub fn type_name(file_type: FileType) -> &'static str {
    match file_type {
        FileType::Regular => "file",
        FileType::Directory => "directory",
        FileType::SymbolicLink => "symlink",
        FileType::BlockDevice => "block-device",
        FileType::CharacterDevice => "character-device",
        FileType::Fifo => "fifo",
        FileType::Socket => "socket",
    }
}

/// Type and permissions as `drwxr-xr-x`.
pub fn mode_text(stat: &Stat) -> String {
    let mut text = String::with_capacity(10);
    text.push(match stat.file_type {
        FileType::Regular => '-',
        FileType::Directory => 'd',
        FileType::SymbolicLink => 'l',
        FileType::BlockDevice => 'b',
        FileType::CharacterDevice => 'c',
        FileType::Fifo => 'p',
        FileType::Socket => 's',
    });
    let mode = stat.permissions;
    for (shift, special, letter) in [(6, 0o4000, 's'), (3, 0o2000, 's'), (0, 0o1000, 't')] {
        let bits = mode >> shift;
        text.push(if bits & 4 == 0 { '-' } else { 'r' });
        text.push(if bits & 2 == 0 { '-' } else { 'w' });
        text.push(match (mode & special != 0, bits & 1 != 0) {
            (true, true) => letter,
            (true, false) => letter.to_ascii_uppercase(),
            (false, true) => 'x',
            (false, false) => '-',
        });
    }
    text
}

/// A moment in UTC: year, month, day, hour, minute, second.
fn civil(seconds: i64) -> (i64, i64, i64, i64, i64, i64) {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    // Days from 0000-03-01 on, in eras of 400 years.
    let day = days + 719_468;
    let (era, of_era) = (day.div_euclid(146_097), day.rem_euclid(146_097));
    let year = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (year + era * 400, if month < 10 { month + 3 } else { month - 9 });
    (year + i64::from(month <= 2), month, day, rest / 3600, rest / 60 % 60, rest % 60)
}

/// `2026-01-31 12:00`, in UTC.
pub fn time_text(time: Time) -> String {
    let (year, month, day, hour, minute, _) = civil(time.seconds);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}")
}

/// `2026-01-31T12:00:00.000000000Z`.
pub fn rfc3339(time: Time) -> String {
    let (year, month, day, hour, minute, second) = civil(time.seconds);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{:09}Z", time.nanoseconds)
}

/// A size as `ls -h` has it: 1.4K, 23M.
pub fn human_size(bytes: u64) -> String {
    if bytes < 1024 {
        return bytes.to_string();
    }
    let (mut value, mut units) = (bytes as f64 / 1024.0, "KMGTPE".chars());
    let mut unit = units.next().unwrap_or('K');
    while value > 999.9 {
        let Some(next) = units.next() else { break };
        (value, unit) = (value / 1024.0, next);
    }
    // Rounded up, as ls does.
    let tenths = (value * 10.0).ceil() / 10.0;
    if tenths < 10.0 { format!("{tenths:.1}{unit}") } else { format!("{:.0}{unit}", value.ceil()) }
}

/// Joins two parts of a path.
pub fn join(above: &[u8], below: &[u8]) -> Vec<u8> {
    let mut path = above.to_vec();
    if !above.is_empty() && !below.is_empty() && !above.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(below);
    path
}

/// A name in the colour of its type, where there are colours.
pub fn colored(file_type: FileType, permissions: u16, name: Vec<u8>) -> Vec<u8> {
    let style = match file_type {
        FileType::Directory => Style::Name,
        FileType::SymbolicLink => Style::Link,
        FileType::Regular if permissions & 0o111 != 0 => Style::Good,
        FileType::Regular => Style::Plain,
        _ => Style::Warning,
    };
    print::styled_bytes(style, name)
}

/// Columns of the terminal on standard output.
pub fn terminal_width() -> usize {
    let size = rustix::termios::tcgetwinsize(std::io::stdout()).ok();
    size.map(|size| usize::from(size.ws_col)).filter(|width| *width > 0).unwrap_or(80)
}

/// Names side by side, downwards first, as wide as they need.
pub fn in_columns(cells: &[(usize, Vec<u8>)], width: usize) -> Vec<u8> {
    let mut text = Vec::new();
    let layout = |rows: usize| -> Vec<usize> {
        let widest = |column: &[(usize, Vec<u8>)]| column.iter().map(|(width, _)| *width).max().unwrap_or(0);
        cells.chunks(rows).map(widest).collect()
    };
    // Fewer rows than this cannot hold them all.
    let total = cells.iter().map(|(width, _)| width + 2).sum::<usize>();
    let mut rows = (total / (width + 2)).clamp(1, cells.len().max(1));
    let widths = loop {
        let widths = layout(rows);
        if rows >= cells.len() || widths.iter().map(|width| width + 2).sum::<usize>() <= width + 2 {
            break widths;
        }
        rows += 1;
    };
    for row in 0..rows.min(cells.len()) {
        let mut fill = 0;
        for (column, column_width) in widths.iter().enumerate() {
            let Some((cell_width, cell)) = cells.get(column * rows + row) else { continue };
            text.extend(std::iter::repeat_n(b' ', fill));
            text.extend_from_slice(cell);
            fill = column_width - cell_width + 2;
        }
        text.push(b'\n');
    }
    text
}

/// The columns of a long listing, before the names.
#[derive(Debug, Default)]
pub struct Columns(Vec<[String; 7]>);

impl Columns {
    /// Adds a file.
    pub fn add(&mut self, stat: &Stat, human: bool, inode: bool) {
        let size = match stat.device {
            Some((major, minor)) => format!("{major}, {minor}"),
            None if human => human_size(stat.size),
            None => stat.size.to_string(),
        };
        let number = if inode { stat.number.to_string() } else { String::new() };
        let [links, uid, gid] = [stat.links, stat.uid, stat.gid].map(|number| number.to_string());
        self.0.push([number, mode_text(stat), links, uid, gid, size, time_text(stat.modified)]);
    }

    /// A line for each, up to where the name begins.
    pub fn lines(&self) -> impl Iterator<Item = String> + '_ {
        let width = |column: usize| self.0.iter().filter_map(|row| row.get(column)).map(String::len).max().unwrap_or(0);
        let widths: Vec<usize> = (0..7).map(width).collect();
        self.0.iter().map(move |row| {
            let mut line = String::new();
            for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
                // Owners stand to the left, as for ls; numbers to the right.
                match column {
                    _ if *width == 0 => continue,
                    3 | 4 => line.push_str(&format!("{cell:<width$} ")),
                    _ => line.push_str(&format!("{cell:>width$} ")),
                }
            }
            line
        })
    }
}

/// Whether standard error shows a progress bar.
pub fn shows_progress() -> bool {
    std::io::stderr().is_terminal()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        let text = |seconds| time_text(Time { seconds, nanoseconds: 0 });
        assert_eq!(text(0), "1970-01-01 00:00");
        assert_eq!(text(951_782_400), "2000-02-29 00:00");
        assert_eq!(text(951_868_799), "2000-02-29 23:59");
        assert_eq!(text(-1), "1969-12-31 23:59");
        assert_eq!(text(4_107_542_400), "2100-03-01 00:00");
        assert_eq!(text(-2_203_891_200), "1900-03-01 00:00");
        assert_eq!(rfc3339(Time { seconds: 1_700_000_000, nanoseconds: 5 }), "2023-11-14T22:13:20.000000005Z");
        // No moment that an image can claim makes it panic.
        text(i64::MAX);
        text(i64::MIN);
    }

    #[test]
    fn sizes_are_rounded_up_as_by_ls() {
        for (bytes, text) in [
            (0, "0"),
            (1023, "1023"),
            (1024, "1.0K"),
            (1025, "1.1K"),
            (10_240, "10K"),
            (10_241, "11K"),
            (1 << 30, "1.0G"),
        ] {
            assert_eq!(human_size(bytes), text);
        }
    }

    #[test]
    fn columns_run_downwards() {
        let cells: Vec<_> = ["a", "bb", "ccc", "d", "e"].iter().map(|s| (s.len(), s.as_bytes().to_vec())).collect();
        assert_eq!(in_columns(&cells, 80), b"a  bb  ccc  d  e\n");
        assert_eq!(in_columns(&cells, 9), b"a    d\nbb   e\nccc\n");
        assert_eq!(in_columns(&cells, 1), b"a\nbb\nccc\nd\ne\n");
        assert_eq!(in_columns(&[], 80), b"");
    }
}
