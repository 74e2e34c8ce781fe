//! A folder as a page: sorted, searched, read in light and dark, by keyboard, and without a script.

use std::cmp::Ordering;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use percent_encoding::percent_decode_str;
use rustix::fs::{AtFlags, Dir, FileType, statat};

use super::path::{Root, encode, encode_all};

/// Rows of a page; what else there is, is found by a search.
const ROWS_MAX: usize = 10_000;

const STYLE: &str = include_str!("listing.css");
const SCRIPT: &str = include_str!("listing.js");

/// What a listing is sorted by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Key {
    #[default]
    Name,
    Size,
    Time,
}

impl Key {
    const ALL: [(Self, &'static str, &'static str); 3] =
        [(Self::Name, "name", "Name"), (Self::Size, "size", "Size"), (Self::Time, "time", "Modified (UTC)")];
}

/// What the page's address asks for: `?q=TEXT&sort=name|size|time&order=asc|desc`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Query {
    search: String,
    sort: Key,
    descending: bool,
}

impl Query {
    /// Reads it; what is not understood is as if it were not there.
    pub fn parse(query: &str) -> Self {
        let mut read = Self::default();
        for (name, value) in query.split('&').filter_map(|pair| pair.split_once('=')) {
            match name {
                "q" => {
                    read.search = percent_decode_str(&value.replace('+', " ")).decode_utf8_lossy().trim().to_owned();
                }
                "sort" => {
                    let key = Key::ALL.into_iter().find(|(_, word, _)| *word == value);
                    read.sort = key.map(|(key, ..)| key).unwrap_or_default();
                }
                "order" => read.descending = value == "desc",
                _ => {}
            }
        }
        read
    }
}

/// What a row is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Kind {
    Folder,
    File,
    /// A link that leads nowhere, or out of the folder that is served; a pipe, a device, a socket.
    Closed(&'static str),
}

#[derive(Debug, Clone)]
struct Entry {
    name: OsString,
    kind: Kind,
    size: u64,
    modified: SystemTime,
}

/// What is in a folder, `.` and `..` left out.
fn read(root: &Root, names: &[OsString], folder: &File) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for found in Dir::read_from(folder)? {
        let found = found?;
        let name = OsStr::from_encoded(found.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        // What vanished meanwhile is not there.
        let Ok(stat) = statat(folder, name.as_os_str(), AtFlags::SYMLINK_NOFOLLOW) else { continue };
        let modified = |seconds: i64| UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        let mut entry = Entry {
            kind: match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => Kind::Folder,
                FileType::RegularFile => Kind::File,
                FileType::Symlink => Kind::Closed("a link that leads nowhere, or out of here"),
                _ => Kind::Closed("neither a file nor a folder"),
            },
            name,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified: modified(stat.st_mtime),
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
            let path: Vec<OsString> = names.iter().chain([&entry.name]).cloned().collect();
            if let Ok(meta) = root.find(&path).and_then(|file| file.metadata()) {
                entry.kind = if meta.is_dir() { Kind::Folder } else { Kind::File };
                entry.size = meta.len();
                entry.modified = meta.modified().unwrap_or(UNIX_EPOCH);
            }
        }
        entries.push(entry);
    }
    Ok(entries)
}

trait FromEncoded {
    fn from_encoded(bytes: &[u8]) -> OsString;
}

impl FromEncoded for OsStr {
    fn from_encoded(bytes: &[u8]) -> OsString {
        std::os::unix::ffi::OsStringExt::from_vec(bytes.to_vec())
    }
}

fn arrange(entries: &mut Vec<Entry>, query: &Query) {
    let wanted = query.search.to_lowercase();
    entries.retain(|entry| entry.name.to_string_lossy().to_lowercase().contains(&wanted));
    let by_name = |a: &Entry, b: &Entry| {
        let lower = |entry: &Entry| entry.name.to_string_lossy().to_lowercase();
        lower(a).cmp(&lower(b)).then_with(|| a.name.cmp(&b.name))
    };
    entries.sort_by(|a, b| {
        let order = match query.sort {
            Key::Name => by_name(a, b),
            Key::Size => a.size.cmp(&b.size),
            Key::Time => a.modified.cmp(&b.modified),
        };
        let order = if query.descending { order.reverse() } else { order };
        let folders_first = (b.kind == Kind::Folder).cmp(&(a.kind == Kind::Folder));
        let first = if query.sort == Key::Time { Ordering::Equal } else { folders_first };
        first.then(order).then_with(|| by_name(a, b))
    });
}

/// Text as it stands in HTML, in an attribute too. Names cannot change the direction of what follows them: each stands
/// in an element of its own.
pub fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            char if char.is_control() => out.push('\u{fffd}'),
            char => out.push(char),
        }
    }
    out
}

/// `1.5 MiB`
fn size_text(bytes: u64) -> String {
    let (mut value, mut unit) = (bytes as f64, "B");
    for next in ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"] {
        if value < 1024.0 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit == "B" { format!("{bytes} B") } else { format!("{value:.1} {unit}") }
}

/// `2026-01-31 12:00:59`, in UTC.
fn time_text(time: SystemTime) -> String {
    // `Sat, 31 Jan 2026 12:00:59 GMT`
    let text = httpdate::fmt_http_date(time);
    let field = |range| text.get(range).unwrap_or_default();
    let month = "JanFebMarAprMayJunJulAugSepOctNovDec".find(field(8..11)).map_or(0, |at| at / 3 + 1);
    format!("{}-{month:02}-{} {}", field(12..16), field(5..7), field(17..25))
}

/// The folder as HTML; `nonce` is what lets the style and the script of the page run, and nothing else.
pub fn page(root: &Root, names: &[OsString], folder: &File, query: &Query, nonce: &str) -> io::Result<String> {
    let mut entries = read(root, names, folder)?;
    let all = entries.len();
    arrange(&mut entries, query);
    let title = match names {
        [] => "/".to_owned(),
        names => names.iter().map(|name| format!("/{}", name.to_string_lossy())).collect(),
    };
    let mut out = head(&title, nonce);
    out.push_str("<header><nav aria-label=\"Path\"><a href=\"/\" title=\"The folder that is served\">/</a>");
    for (at, name) in names.iter().enumerate() {
        let here = names.get(..=at).unwrap_or_default();
        let current = if at + 1 == names.len() { " aria-current=\"page\"" } else { "" };
        let shown = escaped(&name.to_string_lossy());
        let _ = write!(out, "<a href=\"{}/\"{current}><bdi>{shown}</bdi>/</a>", encode_all(here));
    }
    let search = escaped(&query.search);
    let _ = write!(
        out,
        "</nav><form role=\"search\"><input type=\"search\" name=\"q\" value=\"{search}\" placeholder=\"Search\" \
         aria-label=\"Search this folder\" accesskey=\"s\"><button>Search</button></form></header>\n<main><table>\
         <thead><tr>"
    );
    for (key, word, label) in Key::ALL {
        let sorted = key == query.sort;
        let descending = sorted && !query.descending;
        let state = match (sorted, query.descending) {
            (false, _) => "none",
            (true, false) => "ascending",
            (true, true) => "descending",
        };
        let order = if descending { "desc" } else { "asc" };
        let asked = encode(OsStr::new(&query.search));
        let q = if query.search.is_empty() { String::new() } else { format!("&amp;q={asked}") };
        let href = format!("?sort={word}&amp;order={order}{q}");
        let _ = write!(out, "<th scope=\"col\" aria-sort=\"{state}\"><a href=\"{href}\">{label}</a></th>");
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    if !names.is_empty() {
        out.push_str("<tr><td><a href=\"../\" rel=\"up\">../</a></td><td></td><td></td></tr>\n");
    }
    for entry in entries.iter().take(ROWS_MAX) {
        row(&mut out, entry);
    }
    out.push_str("</tbody></table>\n");
    let bytes = entries.iter().filter(|entry| entry.kind == Kind::File).map(|entry| entry.size).sum();
    let _ = write!(out, "<p role=\"status\">{}</p>", summary(entries.len(), all, bytes));
    let _ = writeln!(out, "</main><script nonce=\"{nonce}\">{SCRIPT}</script></body></html>");
    Ok(out)
}

fn summary(shown: usize, all: usize, bytes: u64) -> String {
    let entries = if all == 1 { "entry" } else { "entries" };
    match (shown, all) {
        (_, 0) => "This folder is empty.".to_owned(),
        (0, all) => format!("None of {all} {entries}."),
        (shown, all) if shown > ROWS_MAX => format!("The first {ROWS_MAX} of {all} {entries}: a search shows others."),
        (shown, all) if shown < all => format!("{shown} of {all} {entries}, {}", size_text(bytes)),
        (_, all) => format!("{all} {entries}, {}", size_text(bytes)),
    }
}

fn row(out: &mut String, entry: &Entry) {
    let (shown, time) = (escaped(&entry.name.to_string_lossy()), time_text(entry.modified));
    let (slash, size) = match entry.kind {
        Kind::Folder => ("/", String::new()),
        Kind::File => {
            ("", format!("<data value=\"{0}\" title=\"{0} bytes\">{1}</data>", entry.size, size_text(entry.size)))
        }
        Kind::Closed(_) => ("", String::new()),
    };
    let name = match entry.kind {
        Kind::Closed(why) => format!("<span title=\"{why}\"><bdi>{shown}</bdi></span>"),
        // `./`: a name with a colon is no scheme.
        _ => format!("<a href=\"./{}{slash}\"><bdi>{shown}</bdi>{slash}</a>", encode(&entry.name)),
    };
    let (stamp, minute) = (time.replace(' ', "T"), time.get(..16).unwrap_or_default());
    let _ = writeln!(
        out,
        "<tr><td>{name}</td><td>{size}</td><td><time datetime=\"{stamp}Z\" title=\"{time} UTC\">{minute}</time></td></tr>"
    );
}

/// The head of every page.
pub fn head(title: &str, nonce: &str) -> String {
    let title = escaped(title);
    format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\
         <meta name=\"color-scheme\" content=\"light dark\"><link rel=\"icon\" href=\"data:,\">\
         <title>{title}</title><style nonce=\"{nonce}\">{STYLE}</style></head>\n<body>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("zoo")).unwrap();
        std::fs::write(at("b.txt"), vec![0; 1536]).unwrap();
        std::fs::write(at("A & <b>'\".txt"), "x").unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at("out")).unwrap();
        let time = UNIX_EPOCH + Duration::from_secs(784_111_777);
        File::options().write(true).open(at("b.txt")).unwrap().set_modified(time).unwrap();
        let root = Root::open(folder.path(), false).unwrap();
        let shown = |query: &str| page(&root, &[], &root.find(&[]).unwrap(), &Query::parse(query), "n").unwrap();
        let all = shown("");
        let order = |page: &str, names: &[&str]| {
            let at: Vec<_> =
                names.iter().map(|name| page.find(name).unwrap_or_else(|| panic!("{name}: {page}"))).collect();
            assert!(at.is_sorted(), "{names:?}: {at:?}");
        };
        let odd = "A &amp; &lt;b&gt;&#39;&quot;.txt";
        order(&all, &["<bdi>zoo</bdi>/", odd, "b.txt", "out</bdi></span>"]);
        assert!(all.contains("href=\"./A%20%26%20%3Cb%3E%27%22.txt\"") && !all.contains("<b>"), "{all}");
        assert!(all.contains(">1.5 KiB<") && all.contains(">1994-11-06 08:49<"), "{all}");
        assert!(all.contains("aria-sort=\"ascending\"><a href=\"?sort=name&amp;order=desc\">") && !all.contains("../"));
        assert!(all.contains("4 entries, 1.5 KiB"), "{all}");
        order(&shown("sort=size&order=desc"), &["zoo", "b.txt", odd]);
        order(&shown("sort=time&order=asc"), &["b.txt", odd]);
        let found = shown("q=%42.T&sort=size");
        assert!(found.contains("<bdi>b.txt") && !found.contains("zoo") && found.contains("1 of 4 entries"), "{found}");
        assert!(found.contains("&amp;q=B.T\"") && found.contains("value=\"B.T\""), "{found}");
        assert!(shown("q=%22%3E%3Cscript").contains("value=\"&quot;&gt;&lt;script\""));
    }
}
