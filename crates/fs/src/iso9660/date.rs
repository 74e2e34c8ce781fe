//! The two forms of a date (ECMA-119, 8.4.26.1 and 9.1.5).
//!
//! ```text
//! short  year-1900 │ month │ day │ hour │ minute │ second │ zone           7 bytes, binary
//! long   "2026" "11" "22" "00" "50" "44" "07"(hundredths)  │ zone          16 digits and a byte
//! ```
//! The zone is signed, in quarters of an hour, east of Greenwich positive.

use crate::Time;
use block::bytes::array;

/// A short date; the beginning of 1970 where it is none.
pub(super) fn short(bytes: &[u8]) -> Time {
    let Some([year, month, day, hour, minute, second, zone]) = array::<7>(bytes, 0) else { return Time::default() };
    let year = i64::from(year).saturating_add(1900);
    seconds(year, month, day, hour, minute, second, zone)
        .map_or(Time::default(), |seconds| Time { seconds, nanoseconds: 0 })
}

/// A long date; `None` where it is not specified.
pub(super) fn long(bytes: &[u8]) -> Option<Time> {
    let number = |at: usize, len: usize| -> Option<u32> {
        std::str::from_utf8(bytes.get(at..at.checked_add(len)?)?).ok()?.trim_start().parse().ok()
    };
    let two = |at: usize| number(at, 2).and_then(|number| u8::try_from(number).ok());
    let zone = bytes.get(16).copied()?;
    let year = i64::from(number(0, 4)?);
    let seconds = seconds(year, two(4)?, two(6)?, two(8)?, two(10)?, two(12)?, zone)?;
    // At most 99 hundredths.
    let nanoseconds = u32::from(two(14)?).saturating_mul(10_000_000);
    Some(Time { seconds, nanoseconds })
}

/// Seconds since 1970 of a date of the Gregorian calendar.
fn seconds(year: i64, month: u8, day: u8, hour: u8, minute: u8, second: u8, zone: u8) -> Option<i64> {
    const BEFORE_MONTH: [i64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let before_month = *BEFORE_MONTH.get(usize::from(month).checked_sub(1)?)?;
    if !(1..=31).contains(&day) || hour > 24 || minute > 60 || second > 61 {
        return None;
    }
    // Leap days up to the end of a year.
    let leap_days = |year: i64| year.div_euclid(4).checked_sub(year.div_euclid(100))?.checked_add(year.div_euclid(400));
    let complete = if month > 2 { year } else { year.checked_sub(1)? };
    let days = year
        .checked_sub(1970)?
        .checked_mul(365)?
        .checked_add(leap_days(complete)?.checked_sub(leap_days(1969)?)?)?
        .checked_add(before_month)?
        .checked_add(i64::from(day).checked_sub(1)?)?;
    // The kernel, too, ignores a zone of more than 13 hours.
    let zone = Some(i64::from(zone.cast_signed())).filter(|zone| zone.abs() <= 52).unwrap_or(0);
    days.checked_mul(86_400)?
        .checked_add(i64::from(hour).checked_mul(3600)?)?
        .checked_add(i64::from(minute).checked_mul(60)?)?
        .checked_add(i64::from(second))?
        .checked_sub(zone.checked_mul(900)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_both_forms() {
        let at = |seconds, nanoseconds| Time { seconds, nanoseconds };
        assert_eq!(short(&[70, 1, 1, 0, 0, 0, 0]), at(0, 0));
        assert_eq!(short(&[100, 2, 29, 12, 0, 1, 0]), at(951_825_601, 0));
        assert_eq!(short(&[100, 3, 1, 0, 0, 0, 0]), at(951_868_800, 0));
        assert_eq!(short(&[200, 3, 1, 0, 0, 0, 0]), at(4_107_542_400, 0));
        assert_eq!(short(&[126, 11, 22, 0, 50, 44, 4]), at(1_795_308_644 - 3600, 0));
        assert_eq!(short(&[126, 11, 22, 0, 50, 44, (-8_i8).cast_unsigned()]), at(1_795_308_644 + 7200, 0));
        assert_eq!(short(&[69, 12, 31, 23, 59, 59, 0]), at(-1, 0));
        assert_eq!(short(&[0; 7]), at(0, 0));
        assert_eq!(long(b"2026112200504407\x04"), Some(at(1_795_308_644 - 3600, 70_000_000)));
        assert_eq!(long(b"0000000000000000\x00"), None);
        assert_eq!(long(b"                 "), None);
        assert_eq!(long(b"20"), None);
    }
}
