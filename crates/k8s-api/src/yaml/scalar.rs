//! What a plain scalar means. The rules are those of kubectl (YAML 1.1 as Go reads it), so that a manifest means the same in a file as
//! in a cluster: `yes` and `on` can be booleans, `0644` is octal, `1_000` a number, and whole floating point numbers are integers.

use serde_json::{Number, Value};
use serde_saphyr::granit_parser::{ScalarStyle, Tag};

/// A scalar's value.
pub(super) struct Scalar {
    pub(super) value: Value,
    /// True for a plain `<<`, which as a key merges mappings.
    pub(super) is_merge: bool,
    /// What a plain `yes`, `no`, `on` or `off` means as a boolean; the value is its text.
    pub(super) word: Option<bool>,
}

/// Returns the value of a scalar by its tag, or by its text if it has none and is not quoted.
pub(super) fn resolve(text: &str, style: ScalarStyle, tag: Option<&Tag>) -> Result<Scalar, String> {
    let plain = matches!(style, ScalarStyle::Plain);
    let value = match tag.and_then(Tag::core_suffix) {
        Some("str") => text.into(),
        Some(wanted @ ("int" | "float" | "bool" | "null")) => {
            let value = word(text).map_or_else(|| by_text(text), |meaning| Ok(meaning.into()))?;
            let fits = match wanted {
                "bool" => value.is_boolean(),
                "null" => value.is_null(),
                _ => value.is_number(),
            };
            if !fits {
                return Err(format!("{text:?} is not a value of !!{wanted}"));
            }
            value
        }
        _ if plain => by_text(text)?,
        _ => text.into(),
    };
    let plain = plain && tag.is_none();
    Ok(Scalar { value, is_merge: plain && text == "<<", word: word(text).filter(|_| plain) })
}

fn by_text(text: &str) -> Result<Value, String> {
    Ok(match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "+.Inf" | "+.INF" | "-.inf" | "-.Inf" | "-.INF" | ".nan"
        | ".NaN" | ".NAN" => {
            return Err(format!("{text} has no place in JSON: a number must be finite"));
        }
        _ => number(text).map_or_else(|| text.into(), Value::Number),
    })
}

fn word(text: &str) -> Option<bool> {
    match text {
        "yes" | "Yes" | "YES" | "on" | "On" | "ON" => Some(true),
        "no" | "No" | "NO" | "off" | "Off" | "OFF" => Some(false),
        _ => None,
    }
}

fn number(text: &str) -> Option<Number> {
    // Names are more frequent than numbers: look at one byte before anything else.
    if !text.starts_with(|first: char| first.is_ascii_digit() || matches!(first, '+' | '-' | '.')) {
        return None;
    }
    let digits = text.replace('_', "");
    integer(&digits).or_else(|| float(&digits))
}

fn integer(text: &str) -> Option<Number> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let (radix, digits) = match digits.get(..2) {
        Some("0x" | "0X") => (16, &digits[2..]),
        Some("0b" | "0B") => (2, &digits[2..]),
        Some("0o" | "0O") => (8, &digits[2..]),
        Some(_) if digits.starts_with('0') => (8, &digits[1..]),
        _ => (10, digits),
    };
    // `from_str_radix` takes another sign.
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let magnitude = u64::from_str_radix(digits, radix).ok()?;
    if negative { 0_i64.checked_sub_unsigned(magnitude).map(Number::from) } else { Some(magnitude.into()) }
}

fn float(text: &str) -> Option<Number> {
    // Rust also reads `inf`, `nan` and `infinity`.
    let digits_only =
        text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'+' | b'-' | b'.' | b'e' | b'E'));
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    let value: f64 = if digits_only && has_digit { text.parse().ok()? } else { return None };
    const EXACT: f64 = 9_007_199_254_740_992.0; // 2^53
    if value.fract() == 0.0 && value.abs() <= EXACT {
        return Some(Number::from(value as i64));
    }
    Number::from_f64(value)
}

#[cfg(test)]
mod tests {
    use super::{ScalarStyle, Value, resolve};

    fn plain(text: &str) -> Value {
        resolve(text, ScalarStyle::Plain, None).map(|scalar| scalar.value).unwrap_or("error".into())
    }

    #[test]
    fn plain_scalars_mean_what_they_mean_to_kubectl() {
        let cases = [
            ("null", "null"),
            ("~", "null"),
            ("yes", "\"yes\""),
            ("True", "true"),
            ("FALSE", "false"),
            ("y", "\"y\""),
            ("12", "12"),
            ("-3", "-3"),
            ("+4", "4"),
            ("0x1F", "31"),
            ("0644", "420"),
            ("089", "89"),
            ("1_000", "1000"),
            ("0", "0"),
            ("-0", "0"),
            ("1.5", "1.5"),
            ("10.0", "10"),
            ("1e3", "1000"),
            ("18446744073709551615", "18446744073709551615"),
            ("-9223372036854775808", "-9223372036854775808"),
            ("1.2.3", "\"1.2.3\""),
            ("10s", "\"10s\""),
            ("1.1.1.1", "\"1.1.1.1\""),
            ("2001:db8::1", "\"2001:db8::1\""),
            ("-", "\"-\""),
            (".", "\".\""),
            ("--1", "\"--1\""),
            ("0x", "\"0x\""),
            ("0x-1", "\"0x-1\""),
            ("12:30:45", "\"12:30:45\""),
            ("2024-01-01", "\"2024-01-01\""),
            (".inf", "\"error\""),
            ("1e999", "\"1e999\""),
            ("infinity", "\"infinity\""),
        ];
        for (text, json) in cases {
            assert_eq!(plain(text).to_string(), json, "{text}");
        }
    }

    #[test]
    fn quoted_scalars_are_text() {
        let quoted = resolve("12", ScalarStyle::DoubleQuoted, None).map(|scalar| scalar.value);
        assert_eq!(quoted, Ok("12".into()));
    }
}
