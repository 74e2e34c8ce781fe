//! The loopback interface: seen, named, captured, and made slow or lossy on request.
//!
//! ```text
//! interface   lo as the kernel describes it, printed as iproute2 and net-tools print it
//! netlink     the sockets over which the kernel is asked and told
//! ```

#![forbid(unsafe_code)]

mod error;
pub mod interface;
pub mod netlink;

pub use error::{Error, Kind, Result, ResultExt};
