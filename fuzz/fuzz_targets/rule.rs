//! Text as a rule of a link, as a published port, and as a hosts file.
#![no_main]

use net::hosts::Hosts;
use net::publish::Publish;
use net::rule::Rule;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(rule) = text.parse::<Rule>() {
        let shown = rule.to_string();
        assert_eq!(shown.parse::<Rule>().map(|rule| rule.to_string()).ok(), Some(shown));
    }
    let mut hosts = Hosts::parse(text);
    let shown = hosts.text();
    assert_eq!(Hosts::parse(&shown).text(), shown);
    hosts.check();
    if hosts.add("name", [127, 0, 0, 1].into()).is_ok() {
        assert!(hosts.addresses("name").contains(&[127, 0, 0, 1].into()));
        hosts.remove("name", None);
        assert!(hosts.addresses("name").is_empty());
    }
    if let Ok(publish) = text.parse::<Publish>() {
        assert_eq!(publish.to_string().parse::<Publish>().ok(), Some(publish));
    }
});
