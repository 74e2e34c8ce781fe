//! What the project does with itself. `cargo xtask` lists it.

#![forbid(unsafe_code)]

mod bench;
mod check;
mod demo;
mod setup;
mod shell;
mod suites;
mod test;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask COMMAND

  setup          install the peers that the tests compare with (Debian packages; root or sudo), and make their user
  test [WORDS]   setup, then every test: as root where that can be had, and as an ordinary user; WORDS go to cargo test
  ci             format, lints, docs, licences, `test`, and a short run of each fuzz target
  fuzz [SECONDS] each fuzz target for so long (default 60)
  demo-image     make test_data/demo.iso anew, from the project's documents
  suites         the test suite of libnbd, fetched, built, and pointed at loopbox
  bench [NAME]   measure against the peers and write docs/performance.md
";

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rest = words.get(1..).unwrap_or_default();
    let done = match words.first().map(String::as_str) {
        Some("setup") => setup::run(),
        Some("test") => setup::run().and_then(|()| test::run(rest)),
        Some("ci") => {
            check::run().and_then(|()| setup::run()).and_then(|()| test::run(&[])).and_then(|()| check::fuzz(10))
        }
        Some("fuzz") => match rest.first().map_or(Ok(60), |text| text.parse()) {
            Ok(seconds) => check::fuzz(seconds),
            Err(_) => Err("fuzz takes a number of seconds".to_owned()),
        },
        Some("demo-image") => demo::run(),
        Some("suites") => suites::run(),
        Some("bench") => bench::run(rest),
        None | Some("help" | "-h" | "--help") => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        Some(word) => Err(format!("no command `{word}`; `cargo xtask` lists them")),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("xtask: {why}");
            ExitCode::FAILURE
        }
    }
}
