//! `loopbox man`: the manual pages, from the definition of the command line.

use std::path::PathBuf;

use block::ResultExt as _;

use super::{Result, Status};

/// Write the manual pages into a folder, or print the first one.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example: loopbox man ~/.local/share/man/man1 && man loopbox-mount")]
pub struct Args {
    /// The folder, made where it is missing; without it loopbox(1) is printed.
    folder: Option<PathBuf>,
}

/// Writes one page a command.
pub fn run(args: &Args) -> Result {
    let mut definition = crate::cli::definition();
    definition.build();
    let Some(folder) = &args.folder else {
        let mut text = Vec::new();
        clap_mangen::Man::new(definition).render(&mut text)?;
        crate::print::bytes(&text)?;
        return Ok(Status::Done);
    };
    let name = || format!("writing manual pages to {}", folder.display());
    std::fs::create_dir_all(folder).context(name)?;
    clap_mangen::generate_to(definition, folder).context(name)?;
    Ok(Status::Done)
}
