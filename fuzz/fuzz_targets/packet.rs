//! Bytes as a question to the name server; and as an IP packet: its headers, its checksum, and its way through a link with every word of a rule.
#![no_main]

use std::time::Duration;

use net::link::Link;
use net::packet::{Headers, finish_checksum};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let _ = net::names::answer(data, &net::hosts::Hosts::default());
    let headers = Headers::parse(data);
    let mut whole = data.to_vec();
    if finish_checksum(&mut whole) {
        let again = whole.clone();
        finish_checksum(&mut whole);
        assert_eq!(whole, again, "a checksum that is set twice is the same");
    }
    let words = "port 53 ipv4: latency 3ms jitter 2ms 25% distribution normal loss 5% duplicate 5% corrupt 5% reorder 5% \
                 rate 1mbit limit 3";
    let Ok(rule) = words.parse() else { return };
    let mut link = Link::new(vec![rule], 1);
    for number in 0..4 {
        let _ = link.push(number, headers.as_ref(), data.len(), Duration::from_millis(number));
    }
    while link.pop(Duration::MAX).is_some() {}
});
