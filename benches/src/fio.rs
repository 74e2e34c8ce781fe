//! What fio measures.

use std::process::Command;

/// Operations a second that fio counted in one direction (`read`, `write`), of a command that ends with this.
pub fn rate(command: &mut Command, direction: &str) -> f64 {
    let said = rig::run_command(command.arg("--output-format=json"));
    let of = said.split(&format!("\"{direction}\" : {{")).nth(1).and_then(|rest| rest.split("\"iops\" : ").nth(1));
    of.and_then(|rest| rest.split(',').next()?.trim().parse().ok()).expect("operations a second of fio")
}
