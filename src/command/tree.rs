//! `loopbox tree`: directories of an image and what is in them, drawn as a tree.

use std::collections::HashSet;
use std::ffi::OsString;
use std::io::IsTerminal as _;

use block::{Error, Kind};
use fs::path::LastLink;
use fs::walk::{DEPTH_MAX, Order, entries};
use fs::{FileType, Inode, Stat};

use super::{Result, Status};
use crate::inside::Inside;
use crate::{listing, print};

/// Draw the tree of files inside an image.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// An image, or a directory in it.
    #[arg(value_name = "IMAGE[:PATH]", required = true)]
    images: Vec<OsString>,

    /// How many levels to show.
    #[arg(short = 'L', long, value_name = "LEVELS")]
    depth: Option<usize>,

    /// Names that begin with a dot too.
    #[arg(short, long)]
    all: bool,

    /// Directories only.
    #[arg(short, long)]
    directories: bool,

    /// The size of each file.
    #[arg(short, long)]
    size: bool,

    /// Sizes as 1.4K, 23M.
    #[arg(short, long)]
    human_readable: bool,

    /// Print help.
    #[arg(long, action = clap::ArgAction::Help)]
    help: Option<bool>,

    #[command(flatten)]
    key: crate::passphrase::KeyFile,
}

/// Draws.
pub fn run(args: &Args) -> Result {
    args.key.remember();
    let mut status = Status::Done;
    let mut drawing = Drawing { args, terminal: std::io::stdout().is_terminal(), text: Vec::new(), counts: (0, 0) };
    for text in &args.images {
        let inside = Inside::open(text, LastLink::Follow)?;
        drawing.text.extend_from_slice(print::escaped(text.as_encoded_bytes()).as_bytes());
        drawing.text.push(b'\n');
        if !drawing.draw(&inside)? {
            status = Status::No;
        }
    }
    let (directories, files) = drawing.counts;
    let plural = |n: u64, one: &str, many: &str| format!("{n} {}", if n == 1 { one } else { many });
    let mut summary = format!("\n{}", plural(directories, "directory", "directories"));
    if !args.directories {
        summary.push_str(&format!(", {}", plural(files, "file", "files")));
    }
    drawing.text.extend_from_slice(summary.as_bytes());
    drawing.text.push(b'\n');
    print::bytes(&drawing.text)?;
    Ok(status)
}

/// A file whose line is still to be drawn.
struct Line {
    name: Box<[u8]>,
    inode: Inode,
    stat: Stat,
}

struct Drawing<'a> {
    args: &'a Args,
    terminal: bool,
    text: Vec<u8>,
    /// Directories and files.
    counts: (u64, u64),
}

/// What is drawn before it is written, bytes.
const TEXT_BYTES_MAX: usize = 64 << 10;

impl Drawing<'_> {
    /// Draws all below one directory; `false` when something of it could not be read.
    fn draw(&mut self, inside: &Inside) -> std::io::Result<bool> {
        let mut whole = true;
        let mut entered = HashSet::new();
        // What is still to be drawn of each directory that we are in. Where nothing is, its bar has ended.
        let mut levels = vec![self.lines(inside, b"", inside.inode, &mut entered, &mut whole).into_iter()];
        // The path of the innermost of them, and where each one's path ends in it.
        let (mut path, mut ends) = (Vec::new(), vec![0]);
        while let Some(level) = levels.last_mut() {
            let Some(line) = level.next() else {
                levels.pop();
                ends.pop();
                path.truncate(ends.last().copied().unwrap_or(0));
                continue;
            };
            self.line(inside, &line, &levels);
            if self.text.len() >= TEXT_BYTES_MAX {
                print::bytes(&self.text)?;
                self.text.clear();
            }
            let deeper = self.args.depth.is_none_or(|depth| levels.len() < depth) && levels.len() < DEPTH_MAX;
            if line.stat.file_type == FileType::Directory && deeper {
                path = listing::join(&path, &line.name);
                ends.push(path.len());
                levels.push(self.lines(inside, &path, line.inode, &mut entered, &mut whole).into_iter());
            }
        }
        Ok(whole)
    }

    fn lines(
        &self,
        inside: &Inside,
        path: &[u8],
        directory: Inode,
        entered: &mut HashSet<u64>,
        whole: &mut bool,
    ) -> Vec<Line> {
        if self.args.depth == Some(0) {
            return Vec::new();
        }
        let mut failed = |error: &block::Error, name: &[u8]| {
            *whole = false;
            print::warning(&format!("{}: {}", inside.shown(&listing::join(path, name)), print::error_text(error)));
        };
        let read = inside.fs.stat(directory).and_then(|stat| {
            if !entered.insert(stat.number) {
                let text = format!("a directory that is also elsewhere in the tree (inode {})", stat.number);
                return Err(Error::new(Kind::Loop, text));
            }
            entries(&*inside.fs, directory, Order::Name)
        });
        let entries = match read {
            Ok(entries) => entries,
            Err(error) => {
                failed(&error, b"");
                return Vec::new();
            }
        };
        let mut lines = Vec::new();
        for (name, inode) in entries {
            if !self.args.all && name.starts_with(b".") {
                continue;
            }
            match inside.fs.stat(inode) {
                Ok(stat) if self.args.directories && stat.file_type != FileType::Directory => {}
                Ok(stat) => lines.push(Line { name, inode, stat }),
                Err(error) => failed(&error, &name),
            }
        }
        lines
    }

    fn line(&mut self, inside: &Inside, line: &Line, levels: &[std::vec::IntoIter<Line>]) {
        let Some((own, above)) = levels.split_last() else { return };
        for level in above {
            self.text.extend_from_slice(if level.len() == 0 { "    " } else { "│   " }.as_bytes());
        }
        self.text.extend_from_slice(if own.len() == 0 { "└── " } else { "├── " }.as_bytes());
        if self.args.size || self.args.human_readable {
            let size = line.stat.size;
            let size = if self.args.human_readable { listing::human_size(size) } else { size.to_string() };
            self.text.extend_from_slice(format!("[{size:>5}]  ").as_bytes());
        }
        let shown = |name: &[u8]| if self.terminal { print::escaped(name).into_bytes() } else { name.to_vec() };
        let name = listing::colored(line.stat.file_type, line.stat.permissions, shown(&line.name));
        self.text.extend_from_slice(&name);
        match line.stat.file_type {
            FileType::Directory => self.counts.0 += 1,
            FileType::SymbolicLink => {
                self.counts.1 += 1;
                let target = inside.fs.read_link(line.inode).unwrap_or_else(|_| b"?".to_vec());
                let target = shown(&target);
                self.text.extend_from_slice(b" -> ");
                self.text.extend_from_slice(&target);
            }
            _ => self.counts.1 += 1,
        }
        self.text.push(b'\n');
    }
}
