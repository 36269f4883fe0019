//! Times as people write and read them: RFC 3339 in UTC. Event ids carry milliseconds since 1970
//! by the clock of Redis, and only that clock counts here.

const MS_PER_DAY: u64 = 86_400_000;

/// A point in time, as somebody said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// Milliseconds before now.
    Ago(u64),
    /// Milliseconds since 1970.
    At(u64),
}

impl Since {
    /// In milliseconds since 1970, where it is `now` there.
    pub fn ms(self, now: u64) -> u64 {
        match self {
            Self::Ago(ms) => now.saturating_sub(ms),
            Self::At(ms) => ms,
        }
    }
}

/// Reads `90s`, `90m`, `12h`, `7d`, `2w`, `2026-01-31` or `2026-01-31T12:00:00Z`, with parts of a second
/// or without.
pub fn since(text: &str) -> Option<Since> {
    if let Some(number) = text.strip_suffix(['s', 'm', 'h', 'd', 'w']) {
        let unit_ms = match text.as_bytes().last()? {
            b's' => 1_000,
            b'm' => 60_000,
            b'h' => 3_600_000,
            b'd' => MS_PER_DAY,
            _ => 7 * MS_PER_DAY,
        };
        return digits(number)?.checked_mul(unit_ms).map(Since::Ago);
    }
    let (date, time) = match text.split_once('T') {
        Some((date, time)) => (date, time.strip_suffix('Z')?),
        None => (text, "00:00:00"),
    };
    let mut parts = date.splitn(3, '-').map(digits);
    let (year, month, day) = (parts.next()??, parts.next()??, parts.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, "0"));
    let mut parts = time.splitn(3, ':').map(digits);
    let (hour, minute, second) = (parts.next()??, parts.next()??, parts.next()??);
    // Of ".5" five hundred milliseconds; what is less than one is left out.
    let ms = digits(format!("{fraction:0<3}").get(..3)?)?;
    if fraction.is_empty() || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if !(1970..=9999).contains(&year) || hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let days = days_of(year, month, day)?;
    Some(Since::At(days * MS_PER_DAY + ((hour * 60 + minute) * 60 + second) * 1_000 + ms))
}

fn digits(text: &str) -> Option<u64> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// Days from 1970-01-01 to a date, by counting in years that begin in March, so that the leap day
/// is the last one.
fn days_of(year: u64, month: u64, day: u64) -> Option<u64> {
    if !(1..=12).contains(&month) || !(1..=31).contains(&day) {
        return None;
    }
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let leap_days = year / 4 - year / 100 + year / 400;
    let days = year * 365 + leap_days + (153 * month + 2) / 5 + day - 1;
    // Days from March of the year 0 to 1970.
    let days = days.checked_sub(719_468)?;
    // The 31st of a shorter month would be another date.
    (date_of(days).2 == day).then_some(days)
}

/// The date that is so many days after 1970-01-01.
fn date_of(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let year = era * 400 + year;
    if month < 10 { (year, month + 3, day) } else { (year + 1, month - 9, day) }
}

/// Milliseconds since 1970 as `2026-01-31T12:00:00.000Z`.
pub fn rfc3339(ms: u64) -> String {
    // An id may carry anything; RFC 3339 ends with the year 9999.
    const LAST_MS: u64 = 253_402_300_799_999;
    let ms = ms.min(LAST_MS);
    let (year, month, day) = date_of(ms / MS_PER_DAY);
    let of_day = ms % MS_PER_DAY;
    let (hour, minute) = (of_day / 3_600_000, of_day / 60_000 % 60);
    let (second, ms) = (of_day / 1_000 % 60, of_day % 1_000);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_and_written_in_utc() {
        assert_eq!(since("90m"), Some(Since::Ago(5_400_000)));
        assert_eq!(since("7d").unwrap().ms(700_000_000), 95_200_000);
        assert_eq!(since("1970-01-01"), Some(Since::At(0)));
        assert_eq!(since("2000-02-29"), Some(Since::At(951_782_400_000)));
        assert_eq!(since("2026-11-23T06:15:00Z"), Some(Since::At(1_795_414_500_000)));
        assert_eq!(since("2026-11-23T06:15:00.25Z"), Some(Since::At(1_795_414_500_250)));
        assert_eq!(since("2026-11-23T06:15:00.0009999999Z"), Some(Since::At(1_795_414_500_000)));
        assert_eq!(rfc3339(951_782_400_001), "2000-02-29T00:00:00.001Z");
        assert_eq!(rfc3339(u64::MAX), "9999-12-31T23:59:59.999Z");
        for bad in [
            "",
            "m",
            "-1m",
            "+1m",
            "soon",
            "2026-02-29",
            "2026-13-01",
            "2026-01-01T1:2Z",
            "2026-01-01T24:00:00Z",
            "2026-01-01T12:00:00.Z",
            "2026-01-01T12:00:00.5",
            "2026-01-01T12:00:00.1.2Z",
            "2026-01-01T12:00.5Z",
            "2026-01-01.5",
            "1969-12-31",
            "99999999999999999999d",
            "9999999999999999w",
        ] {
            assert_eq!(since(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_day_of_four_centuries_is_read_as_it_is_written() {
        for day in 0..146_097 {
            let text = rfc3339(day * MS_PER_DAY);
            assert_eq!(since(&text[..10]), Some(Since::At(day * MS_PER_DAY)), "{text}");
        }
    }
}
