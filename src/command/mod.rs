//! One file a command: what it takes (`Args`) and what it does (`run`).

pub mod attach;
pub mod cat;
pub mod check;
pub mod completions;
pub mod convert;
pub mod cp;
pub mod create;
pub mod demo;
pub mod detach;
pub mod doctor;
pub mod hosts;
pub mod info;
pub mod key;
pub mod link;
pub mod list;
pub mod ls;
pub mod man;
pub mod mkdir;
pub mod mount;
pub mod mv;
pub mod ping;
pub mod ports;
pub mod rm;
pub mod run;
pub mod serve;
pub mod show;
pub mod sound;
pub mod tar;
pub mod top;
pub mod tree;
pub mod umount;
pub mod web;

/// What a command came to, when nothing failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(dead_code, reason = "for the commands that can say no, or run a program")]
pub enum Status {
    /// It is done, or the answer is yes: exit status 0.
    Done,
    /// The answer is no, or a part could not be done and was reported: exit status 1.
    No,
    /// The exit status of a program that was run.
    Code(u8),
}

/// What every command returns; an error is printed once, with its chain of sources, and is exit status 2.
pub type Result = std::result::Result<Status, Box<dyn std::error::Error>>;

/// A time in seconds, as ping takes it: `0.2`.
///
/// # Errors
/// What is no number, negative, or longer than a day.
pub fn seconds(text: &str) -> std::result::Result<std::time::Duration, String> {
    match text.parse::<f64>() {
        Ok(seconds) if (0.0..=86400.0).contains(&seconds) => Ok(std::time::Duration::from_secs_f64(seconds)),
        _ => Err("not a number of seconds from 0 to 86400".to_owned()),
    }
}
