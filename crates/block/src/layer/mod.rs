//! Devices made of devices.
//!
//! | layer | what it changes | `File` extents of below |
//! |---|---|---|
//! | [`Window`] | a part of a device, as a device | passed on, moved |
//! | [`ReadOnly`] | takes no writes | passed on |
//!
//! A layer is generic over what it stands on, so that a stack known at compile time costs no calls through a table;
//! `Arc<dyn BlockDevice>` is a [`BlockDevice`](crate::BlockDevice) too, for stacks built from what a user typed.

mod read_only;
mod window;

pub use read_only::ReadOnly;
pub use window::Window;
