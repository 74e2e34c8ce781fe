//! Suites that every device must pass (feature `testing`).
//!
//! - [`conformance`]: each sentence that the traits promise, checked.
//! - [`model`]: random operations, compared with a plain vector of bytes.
//! - [`crash`]: the power fails at every write and every flush; an operation fails, for each of them.
//! - [`overlay`]: an overlay driven by bytes of a fuzzer.
//!
//! They panic, as tests do, with what was seen and what was promised.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod conformance;
pub mod crash;
pub mod model;
pub mod overlay;
