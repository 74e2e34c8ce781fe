//! Bytes on a device that describe another device, and the words that name an image.

#![forbid(unsafe_code)]
#![deny(clippy::indexing_slicing, clippy::arithmetic_side_effects)]

mod blocks;
pub mod compressed;
pub mod gate;
pub mod image;
pub mod luks;
pub mod parallels;
pub mod partition;
pub mod probe;
pub mod qcow2;
pub mod sequential;
pub mod spec;
pub mod vdi;
pub mod vhd;
pub mod vhdx;
pub mod vmdk;
