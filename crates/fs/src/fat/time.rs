//! Dates as DOS wrote them, taken to be UTC.
//!
//! ```text
//! date  year-1980, 7 bits │ month, 4 │ day, 5           time  hour, 5 bits │ minute, 6 │ second / 2, 5
//! ```
//! Beside them may stand hundredths of a second (0 to 199), and in exFAT the distance from UTC in quarters of an hour.

use crate::Time;

/// 1980-01-01 and 2107-12-31 23:59:58, the first and the last moment that can be written, in seconds since 1970.
const FIRST: i64 = 315_532_800;
const LAST: i64 = 4_354_819_198;
const DAY: i64 = 86_400;

/// A moment as it is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Stamp {
    pub date: u16,
    pub time: u16,
    /// Hundredths of a second, 0 to 199, on top of the even second.
    pub hundredths: u8,
}

impl Stamp {
    /// The moment of a stamp; the beginning of 1980 where it is none.
    pub fn to_time(self) -> Time {
        let (year, month, day) = (i64::from(self.date >> 9), i64::from(self.date >> 5 & 15), i64::from(self.date & 31));
        let days = days_from_civil(year.saturating_add(1980), month.clamp(1, 12), day.max(1));
        let (hour, minute, second) =
            (i64::from(self.time >> 11), i64::from(self.time >> 5 & 63), i64::from(self.time & 31).saturating_mul(2));
        let hundredths = i64::from(self.hundredths.min(199));
        let seconds = days
            .saturating_mul(DAY)
            .saturating_add(hour.saturating_mul(3600))
            .saturating_add(minute.saturating_mul(60))
            .saturating_add(second)
            .saturating_add(hundredths / 100);
        Time { seconds, nanoseconds: ((hundredths % 100).unsigned_abs() as u32).saturating_mul(10_000_000) }
    }

    /// The stamp of a moment, rounded down; the first or last one for what lies outside of 1980 to 2107.
    pub fn of(time: Time) -> Self {
        let inside = (FIRST..=LAST).contains(&time.seconds);
        let seconds = time.seconds.clamp(FIRST, LAST);
        let (year, month, day) = civil_from_days(seconds.div_euclid(DAY));
        let second = seconds.rem_euclid(DAY);
        let date = (year.saturating_sub(1980) << 9) | (month << 5) | day;
        let time_of_day = ((second / 3600) << 11) | ((second / 60 % 60) << 5) | (second % 60 / 2);
        let hundredths = if inside {
            (second % 2).saturating_mul(100).saturating_add(i64::from(time.nanoseconds / 10_000_000).min(99))
        } else {
            0
        };
        // Each lies within its bits.
        Self { date: date as u16, time: time_of_day as u16, hundredths: hundredths as u8 }
    }

    /// As exFAT stores it, date above time.
    pub fn word(self) -> u32 {
        u32::from(self.date) << 16 | u32::from(self.time)
    }

    /// From a word of exFAT.
    pub fn of_word(word: u32, hundredths: u8) -> Self {
        Self { date: (word >> 16) as u16, time: (word & 0xffff) as u16, hundredths }
    }
}

/// Days since 1970-01-01 of a day of the Gregorian calendar, counted in years that begin in March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year.saturating_sub(1) } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = month.saturating_add(9) % 12;
    let of_year = of_year.saturating_mul(153).saturating_add(2) / 5;
    let of_year = of_year.saturating_add(day).saturating_sub(1);
    let days = of_era.saturating_mul(365).saturating_add(of_era / 4).saturating_sub(of_era / 100);
    era.saturating_mul(146_097).saturating_add(days).saturating_add(of_year).saturating_sub(719_468)
}

/// Year, month and day of a number of days since 1970-01-01.
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let leap = (of_era / 1460).saturating_sub(of_era / 36_524).saturating_add(of_era / 146_096);
    let year = of_era.saturating_sub(leap) / 365;
    let before = year.saturating_mul(365).saturating_add(year / 4).saturating_sub(year / 100);
    let of_year = of_era.saturating_sub(before);
    let month = of_year.saturating_mul(5).saturating_add(2) / 153;
    let day = of_year.saturating_sub(month.saturating_mul(153).saturating_add(2) / 5).saturating_add(1);
    let month = if month < 10 { month.saturating_add(3) } else { month.saturating_sub(9) };
    let year = year.saturating_add(era.saturating_mul(400));
    (if month <= 2 { year.saturating_add(1) } else { year }, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_are_those_of_date() {
        // date -ud 2024-02-29T23:59:58.5 +%s
        let time = Time { seconds: 1_709_251_199, nanoseconds: 510_000_000 };
        let stamp = Stamp::of(time);
        assert_eq!((stamp.date, stamp.time, stamp.hundredths), (44 << 9 | 2 << 5 | 29, 23 << 11 | 59 << 5 | 29, 151));
        assert_eq!(stamp.to_time(), time);
    }

    #[test]
    fn every_day_comes_back() {
        for day in (FIRST / DAY)..=(LAST / DAY) {
            let time = Time { seconds: day * DAY + 4242, nanoseconds: 0 };
            assert_eq!(Stamp::of(time).to_time(), time);
        }
    }

    #[test]
    fn what_cannot_be_written_is_the_nearest_that_can() {
        assert_eq!(Stamp::of(Time { seconds: -5, nanoseconds: 7 }).to_time().seconds, FIRST);
        let last = Stamp::of(Time { seconds: i64::MAX, nanoseconds: 7 });
        assert_eq!(last.to_time(), Time { seconds: LAST, nanoseconds: 0 });
        assert_eq!(Stamp::of_word(last.word(), last.hundredths), last);
        let _ = Stamp { date: 0xffff, time: 0xffff, hundredths: 255 }.to_time();
        assert_eq!(Stamp::default().to_time().seconds, FIRST);
    }
}
