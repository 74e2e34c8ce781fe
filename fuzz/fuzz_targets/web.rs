//! A request for a file: any path, any header fields, against a small folder.
#![no_main]

use hyper::Request;
use hyper::body::Body as _;
use net::web::{Options, Site};

const FIELDS: [&str; 8] = [
    "range", "if-range", "if-match", "if-none-match", "if-modified-since", "if-unmodified-since", "accept-encoding", "x",
];

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz_targets");
    let site = Site::open(folder.as_ref(), Options::default()).unwrap();
    let mut request = Request::builder().uri(format!("/{}", lines.next().unwrap_or_default()));
    for (line, field) in lines.zip(FIELDS) {
        request = request.header(field, line);
    }
    let Ok(request) = request.body(()) else { return };
    let response = site.respond(&request.into_parts().0);
    assert!(!response.status().is_server_error() && response.body().size_hint().exact().is_none_or(|len| len < 1 << 30));
});
