//! Durations as Go writes them, which is what Istio reads.

use super::Invalid;
use std::time::Duration;

/// Parses a duration such as `1.5s`, `1h30m` or `100ms`. Only `0` may go without a unit, and none is negative.
pub fn duration(text: &str) -> Result<Duration, Invalid> {
    let invalid = || {
        Invalid::new(format!(
            "{text:?} is not a duration, which is a number with a unit such as 1.5s, 100ms or 1h30m"
        ))
    };
    if let Some(rest) = text.strip_prefix('-') {
        duration(rest)?;
        return Err(Invalid::new(format!("{text:?} must not be negative")));
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    let mut nanos: u128 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let (number, tail) = rest.split_at(number_end);
        let unit_end = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_end);
        nanos += scaled(number, nanos_of(unit).ok_or_else(invalid)?).ok_or_else(invalid)?;
        rest = tail;
    }
    // The same limit as Go's, about 292 years: everything downstream can count on it.
    match i64::try_from(nanos) {
        Ok(nanos) => Ok(Duration::from_nanos(nanos.unsigned_abs())),
        Err(_) => Err(Invalid::new(format!("{text:?} is longer than 292 years"))),
    }
}

/// Parses a duration for a field in which Istio takes whole milliseconds from 1 on.
pub(crate) fn positive_duration(text: &str) -> Result<Duration, Invalid> {
    let parsed = duration(text)?;
    if parsed < Duration::from_millis(1) {
        return Err(Invalid::new(format!("{text:?} is too short: it must be at least 1ms")));
    }
    if parsed.subsec_nanos() % 1_000_000 != 0 {
        return Err(Invalid::new(format!(
            "{text:?} is too precise: it must be a whole number of milliseconds"
        )));
    }
    Ok(parsed)
}

fn nanos_of(unit: &str) -> Option<u128> {
    Some(match unit {
        "ns" => 1,
        "us" | "µs" | "μs" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// Multiplies a decimal number, dropping what is less than one.
fn scaled(number: &str, unit: u128) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 20 || fraction.contains('.') {
        return None;
    }
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<u128>().ok() };
    // No unit has more than 13 digits, so later ones cannot change the result.
    let fraction = &fraction[..fraction.len().min(13)];
    let power = 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    Some(digits(whole)? * unit + digits(fraction)? * unit / power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        for (text, millis) in [
            ("1s", 1000),
            ("1.5s", 1500),
            ("1h2m3s", 3_723_000),
            ("100ms", 100),
            ("0", 0),
            (".5s", 500),
            ("1.s", 1000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        assert_eq!(duration("2us"), Ok(Duration::from_micros(2)));
    }

    #[test]
    fn what_is_no_duration_is_refused() {
        for text in
            ["", "1", "s", "1x", "-1s", "1s1", "1..2s", "a1s", " 1s", "99999999999999999999h", "300000000h"]
        {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn most_fields_take_whole_milliseconds() {
        assert!(positive_duration("0s").is_err());
        assert!(positive_duration("1.0005s").is_err());
        assert_eq!(positive_duration("1ms"), Ok(Duration::from_millis(1)));
    }
}
