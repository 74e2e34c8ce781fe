//! The loopback interface: seen, named, captured, and made slow or lossy on request.
//!
//! ```text
//! interface   lo as the kernel describes it, printed as iproute2 and net-tools print it
//! hosts       names: the hosts file, and NAME.localhost
//! link        packets go in, and come out later, twice, changed, or not at all: pure
//! driver      the link of a private network: the only I/O of rules and capture
//! capture     packets in a pcapng file
//! rule        what is done to which packets, in netem's words
//! packet      the headers that rules look at
//! names       a name server for a private network
//! publish     ports of the machine that lead into it
//! ping        ICMP echo
//! ports       who listens, and why a connection is refused
//! web         a server of files
//! netlink     the sockets over which the kernel is asked and told
//! ```

#![forbid(unsafe_code)]

pub mod capture;
pub mod driver;
mod error;
pub mod hosts;
pub mod interface;
pub mod link;
pub mod names;
pub mod netlink;
pub mod packet;
pub mod ping;
pub mod ports;
pub mod publish;
pub mod rule;
pub mod web;

pub use error::{Error, Kind, Result, ResultExt};
