//! The words of the command line, and the help.

use super::getopt::{Long, Short, Takes};
use super::list;

/// An option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Word {
    All,
    Associated,
    SetCapacity,
    Detach,
    DetachAll,
    Find,
    NoOverlap,
    Offset,
    SizeLimit,
    SectorSize,
    PartScan,
    ReadOnly,
    DirectIo,
    Show,
    Verbose,
    Json,
    List,
    NoHeadings,
    Output,
    OutputAll,
    Raw,
    Help,
    Version,
    Remove,
    LoopRef,
}

const fn long(name: &'static str, takes: Takes, option: Word) -> Long<Word> {
    Long { name, takes, option, may_be_cut: true }
}

/// One that came after 2.38: it must be written out, so that what used to be an abbreviation still is.
const fn newer(name: &'static str, takes: Takes, option: Word) -> Long<Word> {
    Long { name, takes, option, may_be_cut: false }
}

/// The long options.
pub const LONG: &[Long<Word>] = &[
    long("all", Takes::Nothing, Word::All),
    long("set-capacity", Takes::Argument, Word::SetCapacity),
    long("detach", Takes::Argument, Word::Detach),
    long("detach-all", Takes::Nothing, Word::DetachAll),
    long("find", Takes::Nothing, Word::Find),
    long("nooverlap", Takes::Nothing, Word::NoOverlap),
    long("help", Takes::Nothing, Word::Help),
    long("associated", Takes::Argument, Word::Associated),
    long("json", Takes::Nothing, Word::Json),
    long("list", Takes::Nothing, Word::List),
    long("sector-size", Takes::Argument, Word::SectorSize),
    long("noheadings", Takes::Nothing, Word::NoHeadings),
    long("offset", Takes::Argument, Word::Offset),
    long("output", Takes::Argument, Word::Output),
    long("output-all", Takes::Nothing, Word::OutputAll),
    long("sizelimit", Takes::Argument, Word::SizeLimit),
    long("partscan", Takes::Nothing, Word::PartScan),
    long("read-only", Takes::Nothing, Word::ReadOnly),
    long("direct-io", Takes::Optional, Word::DirectIo),
    long("raw", Takes::Nothing, Word::Raw),
    long("show", Takes::Nothing, Word::Show),
    long("verbose", Takes::Nothing, Word::Verbose),
    long("version", Takes::Nothing, Word::Version),
    newer("remove", Takes::Argument, Word::Remove),
    newer("loop-ref", Takes::Argument, Word::LoopRef),
];

const fn short(letter: u8, takes: bool, option: Word) -> Short<Word> {
    Short { letter, takes, option }
}

/// The short options.
pub const SHORT: &[Short<Word>] = &[
    short(b'a', false, Word::All),
    short(b'j', true, Word::Associated),
    short(b'c', true, Word::SetCapacity),
    short(b'd', true, Word::Detach),
    short(b'D', false, Word::DetachAll),
    short(b'f', false, Word::Find),
    short(b'L', false, Word::NoOverlap),
    short(b'o', true, Word::Offset),
    short(b'b', true, Word::SectorSize),
    short(b'P', false, Word::PartScan),
    short(b'r', false, Word::ReadOnly),
    short(b'v', false, Word::Verbose),
    short(b'J', false, Word::Json),
    short(b'l', false, Word::List),
    short(b'n', false, Word::NoHeadings),
    short(b'O', true, Word::Output),
    short(b'h', false, Word::Help),
    short(b'V', false, Word::Version),
];

/// Options of which only one may be given, in the order in which a message names them.
pub const EXCLUSIVE: &[&[Word]] = &[
    &[Word::DetachAll, Word::All, Word::SetCapacity, Word::Detach, Word::Find, Word::Associated],
    &[Word::DetachAll, Word::SetCapacity, Word::Detach, Word::Find, Word::List],
    &[Word::Json, Word::Raw],
];

/// The release whose words and output these are.
pub const VERSION: &str = "2.38.1";

/// The help: of the options `(words, what they do)`, an empty one being an empty line.
const HELP: &[(&str, &str)] = &[
    (" -a, --all", "list all used devices"),
    (" -d, --detach <loopdev>...", "detach one or more devices"),
    (" -D, --detach-all", "detach all used devices"),
    (" -f, --find", "find first unused device"),
    (" -c, --set-capacity <loopdev>", "resize the device"),
    (" -j, --associated <file>", "list all devices associated with <file>"),
    (" -L, --nooverlap", "avoid possible conflict between devices"),
    ("", ""),
    (" -o, --offset <num>", "start at offset <num> into file"),
    ("     --sizelimit <num>", "device is limited to <num> bytes of the file"),
    (" -b, --sector-size <num>", "set the logical sector size to <num>"),
    (" -P, --partscan", "create a partitioned loop device"),
    (" -r, --read-only", "set up a read-only loop device"),
    ("     --direct-io[=<on|off>]", "open backing file with O_DIRECT"),
    ("     --show", "print device name after setup (with -f)"),
    (" -v, --verbose", "verbose mode"),
    ("", ""),
    (" -J, --json", "use JSON --list output format"),
    (" -l, --list", "list info about all or specified (default)"),
    (" -n, --noheadings", "don't print headings for --list output"),
    (" -O, --output <cols>", "specify columns to output for --list"),
    ("     --output-all", "output all columns"),
    ("     --raw", "use raw --list output format"),
    ("", ""),
    (" -h, --help", "display this help"),
    (" -V, --version", "display version"),
];

/// The help, as losetup prints it.
pub fn help(name: &str) -> String {
    let mut text = format!("\nUsage:\n {name} [options] [<loopdev>]\n {name} [options] -f | <loopdev> <file>\n");
    text.push_str("\nSet up and control loop devices.\n\nOptions:\n");
    for (words, about) in HELP {
        text.push_str(format!("{words:<31}{about}").trim_end());
        text.push('\n');
    }
    text.push_str("\nAvailable output columns:\n");
    for kind in list::KINDS.iter().filter(|kind| !kind.newer) {
        text.push_str(&format!("{:>13}  {}\n", kind.column.name, kind.about));
    }
    text.push_str("\nFor more details see losetup(8).\n");
    text
}
