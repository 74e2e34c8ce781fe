//! `Range: bytes=0-99,200-,-50` (RFC 9110 section 14.1.2).

/// The parts that one request may ask for; one that asks for more is given the whole.
const PARTS_MAX: usize = 64;

/// A part of a file, bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    pub start: u64,
    pub len: u64,
}

impl Part {
    /// `bytes 0-99/1000`
    pub fn content_range(self, size: u64) -> String {
        format!("bytes {}-{}/{size}", self.start, self.start.saturating_add(self.len).saturating_sub(1))
    }
}

/// What a request asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ranges {
    /// All of it: what was asked for is not understood, or is more than the whole.
    Whole,
    /// These parts, in this order.
    Parts(Vec<Part>),
    /// Nothing that there is.
    Unsatisfiable,
}

/// Reads the field's value, for a file of `size` bytes.
pub fn parse(value: &str, size: u64) -> Ranges {
    let Some((unit, set)) = value.split_once('=') else { return Ranges::Whole };
    if !unit.trim().eq_ignore_ascii_case("bytes") {
        return Ranges::Whole;
    }
    let mut parts = Vec::new();
    let mut asked = 0usize;
    for spec in set.split(',').map(str::trim).filter(|spec| !spec.is_empty()) {
        asked = asked.saturating_add(1);
        match part(spec, size) {
            None => return Ranges::Whole,
            Some(None) => {}
            Some(Some(part)) => parts.push(part),
        }
    }
    let total = parts.iter().fold(0u64, |total, part| total.saturating_add(part.len));
    match parts.len() {
        0 if asked == 0 => Ranges::Whole,
        0 => Ranges::Unsatisfiable,
        // Many small or overlapping parts cost more than they spare (section 14.2).
        _ if asked > PARTS_MAX || total > size => Ranges::Whole,
        _ => Ranges::Parts(parts),
    }
}

/// `None`: not understood. `Some(None)`: beyond the end.
fn part(spec: &str, size: u64) -> Option<Option<Part>> {
    let (first, last) = spec.split_once('-')?;
    let number = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        // A number too large for u64 is beyond any end.
        digits.then(|| text.parse::<u64>().unwrap_or(u64::MAX))
    };
    if first.is_empty() {
        let len = number(last)?.min(size);
        return Some((len > 0).then(|| Part { start: size.saturating_sub(len), len }));
    }
    let start = number(first)?;
    let end = if last.is_empty() { u64::MAX } else { number(last)? };
    if end < start {
        return None;
    }
    let len = end.saturating_add(1).min(size).saturating_sub(start);
    Some((start < size).then_some(Part { start, len }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_as_the_rfc_has_them() {
        let parts = |of: &[(u64, u64)]| {
            Ranges::Parts(of.iter().map(|(start, len)| Part { start: *start, len: *len }).collect())
        };
        for (value, expected) in [
            ("bytes=0-499", parts(&[(0, 500)])),
            ("bytes=500-999", parts(&[(500, 500)])),
            ("bytes=-500", parts(&[(9500, 500)])),
            ("bytes=9500-", parts(&[(9500, 500)])),
            ("BYTES=0-0, -1", parts(&[(0, 1), (9999, 1)])),
            ("bytes= 0-999, 4500-5499, -1000", parts(&[(0, 1000), (4500, 1000), (9000, 1000)])),
            ("bytes=9999-99999999999999999999999", parts(&[(9999, 1)])),
            ("bytes=0-,20000-", parts(&[(0, 10000)])),
            ("bytes=-20000", parts(&[(0, 10000)])),
            ("bytes=10000-", Ranges::Unsatisfiable),
            ("bytes=-0", Ranges::Unsatisfiable),
            ("bytes=5-4", Ranges::Whole),
            ("bytes=a-b", Ranges::Whole),
            ("bytes=1-+2", Ranges::Whole),
            ("bytes=", Ranges::Whole),
            ("lines=1-2", Ranges::Whole),
            ("bytes=0-9999,0-9999", Ranges::Whole),
        ] {
            assert_eq!(parse(value, 10_000), expected, "{value}");
        }
        assert_eq!(parse("bytes=0-0", 0), Ranges::Unsatisfiable);
        assert_eq!(parse(&format!("bytes={}", "1-1,".repeat(100)), 10_000), Ranges::Whole);
        assert_eq!(Part { start: 5, len: 10 }.content_range(100), "bytes 5-14/100");
    }

    proptest::proptest! {
        #[test]
        fn parts_lie_within_the_file(value in "bytes=([0-9]{0,21}-?[0-9]{0,21},? ?){0,5}", size: u64) {
            if let Ranges::Parts(parts) = parse(&value, size) {
                let total = parts.iter().try_fold(0u64, |total, part| {
                    assert!(part.len > 0 && part.start + part.len <= size);
                    total.checked_add(part.len)
                });
                proptest::prop_assert!(total.unwrap() <= size);
            }
        }
    }
}
