//! Durations as Go and protobuf write them.

use std::time::Duration;

/// Parses Go's notation, such as `1h30m`, `5s`, `1.5s` or `250ms`, of which protobuf's `45s` is a part.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let invalid = || format!("{text:?} is not a duration, such as 10s or 1h30m");
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest == "0" {
        return Ok(total);
    }
    if rest.is_empty() {
        return Err(invalid());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(invalid)?;
        let amount: f64 = rest[..digits].parse().map_err(|_| invalid())?;
        let end = rest[digits..].find(|c: char| c.is_ascii_digit() || c == '.');
        let end = end.map_or(rest.len(), |end| digits + end);
        let unit = match &rest[digits..end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(invalid()),
        };
        let part = Duration::try_from_secs_f64(amount * unit).map_err(|_| invalid())?;
        total = total.checked_add(part).ok_or_else(invalid)?;
        rest = &rest[end..];
    }
    Ok(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_notations_are_read() {
        for (text, expected) in [
            ("45s", Duration::from_secs(45)),
            ("0", Duration::ZERO),
            ("0s", Duration::ZERO),
            ("1h30m", Duration::from_secs(5400)),
            ("250ms", Duration::from_millis(250)),
            ("1.5s", Duration::from_millis(1500)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn anything_else_is_refused() {
        for text in ["", "45", "s", "1x", "-1s", "1e400s", "1.2.3s", "99999999999999999999h"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
