//! A command with a world of its own: planned as a list of steps, then spawned and supervised.
//!
//! ```text
//! loopbox          supervisor: new user and network namespaces; passes signals on; owns all threads
//!   │            and serves the images that the command has mounted
//!   └─ init        process 1 of a new process namespace: mounts, reaps; dies with the supervisor, and all with it
//!        └─ COMMAND
//! ```
//!
//! [`plan`] is pure: what would be done, as steps that can be printed. [`spawn`] does them.

#![forbid(unsafe_code)]

mod image;
mod init;
mod mounts;
pub mod plan;
mod spawn;
mod stage;
mod user;

pub use image::Image;
pub use spawn::{Ended, Running, spawn};
