//! `loopbox ls`: what is in a directory of an image.

use std::ffi::OsString;
use std::io::IsTerminal as _;

use fs::path::LastLink;
use fs::walk::{Next, Order, Step, entries, walk};
use fs::{FileSystem, FileType, Inode, Stat};
use serde::Serialize;

use super::{Result, Status};
use crate::inside::Inside;
use crate::listing::{self, Columns};
use crate::print;

/// List files inside an image, with no mount and no privilege.
///
/// Options mean what they mean for ls. Owners are numbers, because the image's users are not this machine's; times are
/// UTC.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// An image, or a file or directory in it.
    #[arg(value_name = "IMAGE[:PATH]", required = true)]
    images: Vec<OsString>,

    /// Type, mode, links, owner, size and time of each.
    #[arg(short, long)]
    long: bool,

    /// Names that begin with a dot too.
    #[arg(short, long)]
    all: bool,

    /// Directories below, and theirs.
    #[arg(short = 'R', long)]
    recursive: bool,

    /// A directory itself, not what is in it.
    #[arg(short, long)]
    directory: bool,

    /// Sizes as 1.4K, 23M.
    #[arg(short, long)]
    human_readable: bool,

    /// The inode number first.
    #[arg(short, long)]
    inode: bool,

    /// One name a line, also on a terminal.
    #[arg(short = '1')]
    one: bool,

    /// Largest first.
    #[arg(short = 'S')]
    by_size: bool,

    /// Newest first.
    #[arg(short = 't', overrides_with = "by_size")]
    by_time: bool,

    /// The other way round.
    #[arg(short, long)]
    reverse: bool,

    /// Print JSON.
    #[arg(long)]
    json: bool,

    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// A file as JSON has it; bytes that are no UTF-8 are escaped.
#[derive(Debug, Serialize)]
struct File {
    path: String,
    #[serde(rename = "type")]
    file_type: &'static str,
    inode: u64,
    mode: String,
    links: u32,
    uid: u32,
    gid: u32,
    size: u64,
    modified: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    target: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: Option<String>,
}

/// A file to be shown.
struct Row {
    path: Vec<u8>,
    inode: Inode,
    stat: Stat,
}

/// Lists.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let mut out =
        Output { args, terminal: std::io::stdout().is_terminal(), files: Vec::new(), blocks: 0, failed: false };
    // A link that is listed in long form stands for itself, as for ls.
    let last = if args.long || args.directory { LastLink::Keep } else { LastLink::Follow };
    for text in &args.images {
        let inside = Inside::open(text, last)?;
        out.list(&inside)?;
    }
    if args.json {
        print::json(&out.files)?;
    }
    Ok(if out.failed { Status::No } else { Status::Done })
}

struct Output<'a> {
    args: &'a Args,
    terminal: bool,
    files: Vec<File>,
    /// Directories shown so far.
    blocks: usize,
    failed: bool,
}

impl Output<'_> {
    fn warn(&mut self, inside: &Inside, path: &[u8], error: &block::Error) {
        self.failed = true;
        print::warning(&format!("{}: {}", inside.shown(path), print::error_text(error)));
    }

    fn list(&mut self, inside: &Inside) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let stat = inside.stat()?;
        if stat.file_type != FileType::Directory || self.args.directory {
            let path = if inside.path.is_empty() { b"/".to_vec() } else { inside.path.clone() };
            return self.show(inside, vec![Row { path, inode: inside.inode, stat }]);
        }
        if !self.args.recursive {
            return self.directory(inside, inside.inode, b"", self.args.images.len() > 1);
        }
        let mut directories = Vec::new();
        let all = self.args.all;
        let fs = &*inside.fs;
        let mut failures = Vec::new();
        walk(fs, inside.inode, Order::Name, &mut |step| match step {
            Step::Enter(found) if found.depth > 0 && !all && found.name.starts_with(b".") => Next::Skip,
            Step::Enter(found) => {
                directories.push((found.inode, found.path.to_vec()));
                Next::Continue
            }
            Step::Failed { path, error } => {
                failures.push((path.to_vec(), error));
                Next::Continue
            }
            Step::File(_) | Step::Leave(_) => Next::Continue,
        });
        for (inode, path) in directories {
            self.directory(inside, inode, &path, true)?;
        }
        for (path, error) in failures {
            self.warn(inside, &path, &error);
        }
        Ok(())
    }

    fn directory(
        &mut self,
        inside: &Inside,
        inode: Inode,
        below: &[u8],
        titled: bool,
    ) -> std::result::Result<(), Box<dyn std::error::Error>> {
        let mut rows = Vec::new();
        match entries(&*inside.fs, inode, Order::Name) {
            Ok(entries) => {
                for (name, inode) in entries {
                    if !self.args.all && name.starts_with(b".") {
                        continue;
                    }
                    match inside.fs.stat(inode) {
                        Ok(stat) => rows.push(Row { path: name.into_vec(), inode, stat }),
                        Err(error) => {
                            self.warn(inside, &listing::join(below, &name), &error);
                        }
                    }
                }
            }
            // A walk has said it already.
            Err(_) if self.args.recursive => {}
            Err(error) => self.warn(inside, below, &error),
        }
        if titled && !self.args.json {
            let gap = if self.blocks > 0 { "\n" } else { "" };
            let title = listing::join(&inside.path, below);
            let title = if title.is_empty() { b"/".to_vec() } else { title };
            if self.terminal {
                print::bytes(format!("{gap}{}:\n", print::escaped(&title)).as_bytes())?;
            } else {
                print::bytes(&[gap.as_bytes(), &title, b":\n"].concat())?;
            }
        }
        self.blocks += 1;
        if self.args.json {
            let base = listing::join(&inside.path, below);
            for row in &mut rows {
                row.path = listing::join(&base, &row.path);
            }
        }
        self.show(inside, rows)
    }

    fn show(&mut self, inside: &Inside, mut rows: Vec<Row>) -> std::result::Result<(), Box<dyn std::error::Error>> {
        if self.args.by_size {
            rows.sort_by_key(|row| std::cmp::Reverse(row.stat.size));
        } else if self.args.by_time {
            rows.sort_by_key(|row| std::cmp::Reverse(row.stat.modified));
        }
        if self.args.reverse {
            rows.reverse();
        }
        if self.args.json {
            let files: Vec<File> = rows.iter().map(|row| json(&*inside.fs, row)).collect();
            self.files.extend(files);
            return Ok(());
        }
        let name = |row: &Row| if self.terminal { print::escaped(&row.path).into_bytes() } else { row.path.clone() };
        let inode = |row: &Row| if self.args.inode { format!("{} ", row.stat.number) } else { String::new() };
        let mut text = Vec::new();
        if self.args.long {
            let mut columns = Columns::default();
            for row in &rows {
                columns.add(&row.stat, self.args.human_readable, self.args.inode);
            }
            for (row, cells) in rows.iter().zip(columns.lines()) {
                text.extend_from_slice(cells.as_bytes());
                text.extend_from_slice(&listing::colored(row.stat.file_type, row.stat.permissions, name(row)));
                if row.stat.file_type == FileType::SymbolicLink {
                    let target = inside.fs.read_link(row.inode).unwrap_or_else(|_| b"?".to_vec());
                    text.extend_from_slice(b" -> ");
                    let shown = if self.terminal { print::escaped(&target).into_bytes() } else { target };
                    text.extend_from_slice(&shown);
                }
                text.push(b'\n');
            }
        } else if self.terminal && !self.args.one {
            let cells: Vec<(usize, Vec<u8>)> = rows
                .iter()
                .map(|row| {
                    let plain = [inode(row).into_bytes(), name(row)].concat();
                    let width = String::from_utf8_lossy(&plain).chars().count();
                    (width, listing::colored(row.stat.file_type, row.stat.permissions, plain))
                })
                .collect();
            text = listing::in_columns(&cells, listing::terminal_width());
        } else {
            for row in &rows {
                text.extend_from_slice(inode(row).as_bytes());
                text.extend_from_slice(&listing::colored(row.stat.file_type, row.stat.permissions, name(row)));
                text.push(b'\n');
            }
        }
        Ok(print::bytes(&text)?)
    }
}

fn json(fs: &dyn FileSystem, row: &Row) -> File {
    let stat = &row.stat;
    let target = (stat.file_type == FileType::SymbolicLink).then(|| fs.read_link(row.inode).ok()).flatten();
    File {
        path: print::escaped(&row.path),
        file_type: listing::type_name(stat.file_type),
        inode: stat.number,
        mode: format!("{:04o}", stat.permissions),
        links: stat.links,
        uid: stat.uid,
        gid: stat.gid,
        size: stat.size,
        modified: listing::rfc3339(stat.modified),
        target: target.map(|target| print::escaped(&target)),
        device: stat.device.map(|(major, minor)| format!("{major}:{minor}")),
    }
}
