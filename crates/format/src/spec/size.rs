//! Sizes as losetup and mount take them: `4096`, `0x1000`, `4K`, `4KiB`, `4KB` (4000), `1.5M`.

/// The bytes that `text` stands for, or `None` where it is no size or more than 64 bits hold.
///
/// `K M G T P E`, alone or with `iB`, are powers of 1024, with `B` powers of 1000; upper and lower case. A fraction
/// needs a suffix. Hexadecimal after `0x`.
///
/// ```
/// use loopbox_format::spec::size_bytes;
/// assert_eq!(size_bytes("1.5K"), Some(1536));
/// assert_eq!(size_bytes("2MB"), Some(2_000_000));
/// assert_eq!(size_bytes("-1"), None);
/// ```
pub fn size_bytes(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return hex.bytes().all(|digit| digit.is_ascii_hexdigit()).then(|| u64::from_str_radix(hex, 16).ok()).flatten();
    }
    let number_end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at_checked(number_end)?;
    let unit = unit_bytes(suffix)?;
    let (whole, fraction) = match number.split_once('.') {
        Some((_, fraction)) if suffix.is_empty() || fraction.is_empty() || fraction.contains('.') => return None,
        Some((whole, fraction)) => (whole, fraction),
        None => (number, ""),
    };
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let fraction = match fraction {
        "" => 0,
        // 18 digits times 1024^6 stay below 128 bits.
        digits if digits.len() <= 18 => {
            let scale = 10_u128.checked_pow(u32::try_from(digits.len()).ok()?)?;
            let part = digits.parse::<u128>().ok()?.checked_mul(u128::from(unit))?.checked_div(scale)?;
            u64::try_from(part).ok()?
        }
        _ => return None,
    };
    whole.checked_add(fraction)
}

/// Bytes of one unit.
fn unit_bytes(suffix: &str) -> Option<u64> {
    let mut letters = suffix.chars();
    let power = match letters.next().map(|letter| letter.to_ascii_uppercase()) {
        None => 0,
        Some('K') => 1,
        Some('M') => 2,
        Some('G') => 3,
        Some('T') => 4,
        Some('P') => 5,
        Some('E') => 6,
        Some(_) => return None,
    };
    let base: u64 = match letters.as_str() {
        "" | "iB" | "ib" => 1024,
        "B" | "b" => 1000,
        _ => return None,
    };
    base.checked_pow(power)
}
