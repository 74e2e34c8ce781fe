//! What every file system must pass, and a file system of memory to test what stands above.
//!
//! For tests, in this crate and in others: a suite fails by a panic that says what was promised and not kept.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

pub mod conformance;
pub mod explore;
pub mod memory;
pub mod model;
pub mod mutate;
pub mod scratch;
