//! `loopbox check`: whether an image's own tables are right.

use std::ffi::OsString;

use backing::{FileBacking, Open};
use block::{Error, Kind, ResultExt as _};
use format::probe::{Format, probe};
use format::qcow2::check::{Repair, Report, check};
use format::spec::Spec;

use super::{Result, Status};
use crate::print::{self, Style, styled};

/// Check the tables of a disk image (qcow2), and mend them when asked to. Exit status 1: something is wrong.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The image file.
    #[arg(value_name = "IMAGE")]
    image: OsString,

    /// Mend: `leaks` (room that nothing uses), or `all`.
    #[arg(short, long, value_name = "WHAT", value_enum)]
    repair: Option<What>,

    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is mended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum What {
    /// Room that nothing uses.
    Leaks,
    /// Counts that are too low, too.
    All,
}

/// Prints what was found.
pub fn run(args: &Args) -> Result {
    let spec = Spec::parse(&args.image)?;
    let repair = match args.repair {
        None => Repair::Nothing,
        Some(What::Leaks) => Repair::Leaks,
        Some(What::All) => Repair::All,
    };
    let open = if args.repair.is_some() { Open::WRITE } else { Open::READ };
    let file = FileBacking::open(&spec.path, open)?;
    let found = probe(&file).context(|| spec.to_string())?.format;
    if found != Format::Qcow2 {
        let context = format!("{spec}: {} has no tables that loopbox checks", found.name());
        return Err(Error::new(Kind::Unsupported, context).into());
    }
    let report = check(&file, repair).context(|| spec.to_string())?;
    if args.json {
        print::json(&report)?;
    } else {
        print::bytes(text(&report).as_bytes())?;
    }
    Ok(if report.is_good() { Status::Done } else { Status::No })
}

fn text(report: &Report) -> String {
    let mut text = String::new();
    for problem in &report.problems {
        text += &format!("{problem}\n");
    }
    let listed = report.problems.len() as u64;
    let all = report.leaks + report.corruptions;
    if all > listed {
        text += &format!("and {} more\n", all - listed);
    }
    let count = |n: u64, one: &str| if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") };
    let verdict = match (report.is_good(), all) {
        (true, 0) => styled(Style::Good, "good"),
        (true, _) => styled(Style::Good, "mended"),
        (false, _) => styled(Style::Bad, "damaged"),
    };
    text += &format!("{verdict}: {}, {}", count(report.leaks, "leak"), count(report.corruptions, "corruption"));
    if report.leaks_fixed + report.corruptions_fixed > 0 {
        text += &format!(" ({} and {} mended)", report.leaks_fixed, report.corruptions_fixed);
    }
    text += &format!(
        "; {} of {} clusters in use, {} compressed\n",
        report.allocated_clusters, report.total_clusters, report.compressed_clusters
    );
    text
}
