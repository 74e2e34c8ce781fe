//! Numbers of bytes as util-linux reads them.
//!
//! ```text
//! 512   0x200   010 (octal)   +5      bytes
//! 1K 1KiB  1M  …  1Y                  powers of 1024
//! 1KB 1kB                             powers of 1000
//! 1.5M                                a point needs a unit
//! ```
//! A digit `d` at place `k` after the point adds `unit / (10^k / d)`, each division without a remainder, so that
//! `1.37M` is 1472999. That is what scripts got so far.

/// Why something is no number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrong {
    /// It is none.
    Invalid,
    /// It is too large.
    TooLarge,
}

impl Wrong {
    /// What the C library calls it.
    pub fn errno(self) -> rustix::io::Errno {
        match self {
            Self::Invalid => rustix::io::Errno::INVAL,
            Self::TooLarge => rustix::io::Errno::RANGE,
        }
    }
}

const UNITS: &[u8] = b"KMGTPEZY";

/// Reads a number of bytes.
pub fn bytes(text: &[u8]) -> Result<u64, Wrong> {
    let text = text.trim_ascii_start();
    if text.first() == Some(&b'-') {
        return Err(Wrong::Invalid);
    }
    let text = text.strip_prefix(b"+").unwrap_or(text);
    let (whole, rest) = integer(text)?;
    let (zeros, digits, suffix) = fraction(rest)?;
    let Some((letter, end)) = suffix.split_first() else {
        return if rest.is_empty() { Ok(whole) } else { Err(Wrong::Invalid) };
    };
    let base: u64 = match end {
        b"" | b"iB" => 1024,
        b"B" | b"b" => 1000,
        _ => return Err(Wrong::Invalid),
    };
    let power = UNITS.iter().position(|unit| *unit == letter.to_ascii_uppercase()).ok_or(Wrong::Invalid)?;
    let unit = (0..=power).try_fold(1_u64, |unit, _| unit.checked_mul(base));
    // A unit past 2^64 is too large, unless it is none of them.
    let unit = match unit {
        Some(unit) => unit,
        None if whole == 0 && digits.is_empty() => return Ok(0),
        None => return Err(Wrong::TooLarge),
    };
    let mut sum = whole.checked_mul(unit).ok_or(Wrong::TooLarge)?;
    let mut place: u64 = (0..zeros).try_fold(1_u64, |place, _| place.checked_mul(10)).ok_or(Wrong::TooLarge)?;
    for digit in digits.iter().map(|digit| u64::from(digit - b'0')) {
        place = place.checked_mul(10).ok_or(Wrong::TooLarge)?;
        if let Some(part) = place.checked_div(digit) {
            sum = sum.checked_add(unit / part).ok_or(Wrong::TooLarge)?;
        }
    }
    Ok(sum)
}

/// The number at the start, and what follows: `0x` hexadecimal, `0` octal, else decimal.
fn integer(text: &[u8]) -> Result<(u64, &[u8]), Wrong> {
    let (radix, digits) = match text {
        [b'0', b'x' | b'X', rest @ ..] if rest.first().is_some_and(u8::is_ascii_hexdigit) => (16, rest),
        [b'0', ..] => (8, text),
        _ => (10, text),
    };
    let end = digits.iter().position(|byte| !char::from(*byte).is_digit(radix)).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    if digits.is_empty() {
        return Err(Wrong::Invalid);
    }
    let mut value = 0_u64;
    for digit in digits.iter().filter_map(|byte| char::from(*byte).to_digit(radix)) {
        value = value
            .checked_mul(u64::from(radix))
            .and_then(|value| value.checked_add(u64::from(digit)))
            .ok_or(Wrong::TooLarge)?;
    }
    Ok((value, rest))
}

/// After the point: the zeros, the digits from the first other on, and the unit.
fn fraction(mut text: &[u8]) -> Result<(usize, &[u8], &[u8]), Wrong> {
    let (mut zeros, mut digits): (usize, &[u8]) = (0, b"");
    while let Some(rest) = text.strip_prefix(b".") {
        if !digits.is_empty() {
            return Err(Wrong::Invalid);
        }
        zeros = rest.iter().take_while(|byte| **byte == b'0').count();
        let rest = rest.get(zeros..).unwrap_or_default();
        let end = rest.iter().position(|byte| !byte.is_ascii_digit()).unwrap_or(rest.len());
        (digits, text) = rest.split_at(end);
    }
    Ok((zeros, digits, text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_util_linux() {
        let right: &[(&str, u64)] = &[
            ("0", 0),
            ("512", 512),
            (" +1", 1),
            ("010", 8),
            ("0x200", 512),
            ("0x10K", 16384),
            ("1K", 1024),
            ("1k", 1024),
            ("5KiB", 5120),
            ("5kB", 5000),
            ("5kb", 5000),
            ("1.5M", 1_572_864),
            // Measured with losetup 2.38.1.
            ("1.37M", 1_472_999),
            ("1.05K", 1075),
            ("1.999K", 2150),
            ("2.75M", 3_198_156),
            ("1.123456G", 1_206_304_916),
            ("0x1.8K", 2048),
            ("1.1T", 1_209_462_790_553),
            ("1.9P", 2_251_799_813_685_248),
            ("5.K", 5120),
            ("1..K", 1024),
            ("1.5kB", 1500),
            ("1.99MB", 2_090_909),
            ("18446744073709551615", u64::MAX),
        ];
        for (text, value) in right {
            assert_eq!(bytes(text.as_bytes()), Ok(*value), "{text}");
        }
        for text in ["", "x", "-1", "5b", "5B", "5KIB", "5Ki", "5iB", "1.5", "1,5K", ".5K", "5 K", "5K ", "0x", "08"] {
            assert_eq!(bytes(text.as_bytes()), Err(Wrong::Invalid), "{text}");
        }
        for text in ["16E", "1Y", "1Z", "18446744073709551616", "16777216T", "1.999999999999999999999K"] {
            assert_eq!(bytes(text.as_bytes()), Err(Wrong::TooLarge), "{text}");
        }
    }
}
