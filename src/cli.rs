//! The command line: one definition a command, from which the parser, the help, the manual pages and the completions
//! are made. A command's words stand in its own file under `command/`; this file lists them.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};

use crate::command::{self, Status};
use crate::print;

/// A program's own disk, loopback network and sound card: files and memory, no root.
#[derive(Debug, Parser)]
#[command(name = "loopbox", version, about, propagate_version = true, disable_help_subcommand = true)]
#[command(after_help = "Exit status: 0 done, 1 the answer is no, 2 it failed.")]
pub struct Cli<C: Subcommand = Command> {
    /// When to use colours.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", help_heading = "Output")]
    pub color: print::Color,

    /// What to do.
    #[command(subcommand)]
    pub command: C,
}

/// The commands that scripts call in loops. They are parsed without building the definitions of all others, and
/// [`Loop::plain`] without any: a definition costs as much as attaching an image does.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each is documented where it is defined")]
pub enum Loop {
    Attach(command::attach::Args),
    Detach(command::detach::Args),
    List(command::list::Args),
    Mount(command::mount::Args),
    Umount(command::umount::Args),
}

impl Loop {
    /// What a line of words alone means, when no word is an option and their number is what the definition asks for.
    fn plain(words: &[OsString]) -> Option<Self> {
        if words.iter().any(|word| word.is_empty() || word.as_encoded_bytes().starts_with(b"-")) {
            return None;
        }
        Some(match words.split_first().map(|(name, words)| (name.to_str(), words))? {
            (Some("attach"), [image]) => Self::Attach(command::attach::Args::of(image)),
            (Some("detach"), disks @ [_, ..]) => Self::Detach(command::detach::Args::of(disks)),
            (Some("list"), []) => Self::List(command::list::Args::default()),
            (Some("mount"), [image, directory]) => Self::Mount(command::mount::Args::of(image, directory)),
            (Some("umount"), points @ [_, ..]) => Self::Umount(command::umount::Args::of(points)),
            _ => return None,
        })
    }

    fn run(self) -> command::Result {
        match self {
            Self::Attach(args) => command::attach::run(&args),
            Self::Detach(args) => command::detach::run(&args),
            Self::List(args) => command::list::run(&args),
            Self::Mount(args) => command::mount::run(&args),
            Self::Umount(args) => command::umount::run(&args),
        }
    }
}

/// The command that others are started with: its start is a part of theirs. It is parsed alone, too.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "it is documented where it is defined")]
pub enum Start {
    Run(Box<command::run::Args>),
}

/// The commands, in the order of the help.
#[derive(Debug, Subcommand)]
#[allow(missing_docs, reason = "each is documented where it is defined")]
pub enum Command {
    #[command(flatten)]
    Loop(Loop),
    Serve(command::serve::Args),
    Info(command::info::Args),
    Create(command::create::Args),
    Key(command::key::Args),
    Convert(command::convert::Args),
    Check(command::check::Args),
    Ls(command::ls::Args),
    Tree(command::tree::Args),
    Cat(command::cat::Args),
    Cp(command::cp::Args),
    Tar(command::tar::Args),
    Mkdir(command::mkdir::Args),
    Rm(command::rm::Args),
    Mv(command::mv::Args),
    #[command(flatten)]
    Start(Start),
    Link(command::link::Args),
    Top(command::top::Args),
    Show(command::show::Args),
    Sound(command::sound::Args),
    Ping(command::ping::Args),
    Web(command::web::Args),
    Ports(command::ports::Args),
    Hosts(command::hosts::Args),
    Doctor(command::doctor::Args),
    Demo(command::demo::Args),
    Completions(command::completions::Args),
    Man(command::man::Args),
}

impl Command {
    fn run(self) -> command::Result {
        match self {
            Self::Loop(command) => command.run(),
            Self::Serve(args) => command::serve::run(&args),
            Self::Info(args) => command::info::run(&args),
            Self::Create(args) => command::create::run(&args),
            Self::Key(args) => command::key::run(&args),
            Self::Convert(args) => command::convert::run(&args),
            Self::Check(args) => command::check::run(&args),
            Self::Ls(args) => command::ls::run(&args),
            Self::Tree(args) => command::tree::run(&args),
            Self::Cat(args) => command::cat::run(&args),
            Self::Cp(args) => command::cp::run(&args),
            Self::Tar(args) => command::tar::run(&args),
            Self::Mkdir(args) => command::mkdir::run(&args),
            Self::Rm(args) => command::rm::run(&args),
            Self::Mv(args) => command::mv::run(&args),
            Self::Start(Start::Run(args)) => command::run::run(*args),
            Self::Link(args) => command::link::run(&args),
            Self::Top(args) => command::top::run(&args),
            Self::Show(args) => command::show::run(&args),
            Self::Sound(args) => command::sound::run(&args),
            Self::Ping(args) => command::ping::run(&args),
            Self::Web(args) => command::web::run(&args),
            Self::Ports(args) => command::ports::run(&args),
            Self::Hosts(args) => command::hosts::run(&args),
            Self::Doctor(args) => command::doctor::run(&args),
            Self::Demo(args) => command::demo::run(&args),
            Self::Completions(args) => command::completions::run(&args),
            Self::Man(args) => command::man::run(&args),
        }
    }
}

/// The whole definition, for manual pages and completions.
pub fn definition() -> clap::Command {
    Cli::<Command>::command()
}

/// The command line, or what is wrong with it.
fn parse() -> Result<(print::Color, Command), clap::Error> {
    let words: Vec<OsString> = std::env::args_os().skip(1).collect();
    if let Some(command) = Loop::plain(&words) {
        return Ok((print::Color::default(), Command::Loop(command)));
    }
    let first = words.first().map(|first| first.to_string_lossy()).unwrap_or_default();
    let some = alone(&first, Command::Loop).or_else(|| alone(&first, Command::Start));
    // All else, and whatever is wrong, is for the whole definition.
    some.map_or_else(|| Cli::<Command>::try_parse().map(|cli| (cli.color, cli.command)), Ok)
}

/// The command line by the definition of a part of the commands, where `first` is one of them and nothing is wrong.
fn alone<C: Subcommand>(first: &str, whole: impl FnOnce(C) -> Command) -> Option<(print::Color, Command)> {
    let parsed = C::has_subcommand(first).then(Cli::<C>::try_parse)?.ok()?;
    Some((parsed.color, whole(parsed.command)))
}

/// Parses the command line, runs the command, prints what went wrong, and returns the exit status.
pub fn main() -> ExitCode {
    let (color, command) = match parse() {
        Ok(parsed) => parsed,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    print::set_color(color);
    match command.run() {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::No) => ExitCode::from(1),
        Ok(Status::Code(code)) => ExitCode::from(code),
        Err(error) if print::is_broken_pipe(error.as_ref()) => ExitCode::SUCCESS,
        Err(error) => {
            print::error(error.as_ref());
            ExitCode::from(2)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_holds_together() {
        definition().debug_assert();
    }

    #[test]
    fn every_command_and_option_says_what_it_is_for() {
        fn check(command: &clap::Command) {
            assert!(command.get_about().is_some(), "`{}` has no help", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "`{} {}` has no help", command.get_name(), argument.get_id());
            }
            command.get_subcommands().for_each(check);
        }
        check(&definition());
    }

    #[test]
    fn plain_words_mean_what_the_definition_says() {
        let lines = [
            "attach a.img,ro",
            "detach /dev/loop3",
            "detach a b c",
            "list",
            "mount a.img,partition=2 /mnt",
            "umount /mnt",
            "umount a b",
        ];
        for line in lines {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let defined = Cli::<Loop>::try_parse_from(std::iter::once("loopbox".into()).chain(words.clone())).unwrap();
            let plain = Loop::plain(&words).expect(line);
            assert_eq!(format!("{plain:?}"), format!("{:?}", defined.command), "{line}");
            assert_eq!(defined.color, print::Color::default());
        }
        let others = [
            "",
            "attach",
            "attach a b",
            "attach --user a",
            "detach",
            "list x",
            "mount a",
            "mount a b c",
            "umount",
            "ls a",
            "attach -- a",
        ];
        for line in others {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            assert!(Loop::plain(&words).is_none(), "{line}");
        }
    }
}
