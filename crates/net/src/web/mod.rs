//! A server of files, over HTTP/1.1 and HTTP/2 (RFC 9110, 9112, 9113): what a browser or curl asks of a folder.
//!
//! ```text
//! server       connections and requests: the only I/O on sockets (hyper, and rustls where asked)
//! site         a request becomes a response: GET and HEAD, files, folders, errors
//! path         a request's path becomes a file below the folder, and never one outside
//! conditional  If-Match, If-None-Match, If-Modified-Since … (RFC 9110 section 13)
//! range        Range: bytes=… (section 14)
//! encoding     Accept-Encoding (section 12.5.3)
//! body         bytes of a file as they are sent: parts of it, or compressed
//! listing      a folder as a page
//! ```

mod body;
mod conditional;
mod encoding;
mod listing;
mod path;
mod range;
mod server;
mod site;

pub use server::{Server, Visit};
pub use site::{Options, Site};
