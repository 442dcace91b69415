//! Names and values of HTTP headers, methods and retry conditions.

use super::Invalid;

/// Returns whether a header cannot be changed as one: pseudo headers, and `host`, which stands for one.
pub(crate) fn is_internal(name: &str) -> bool {
    name.starts_with(':') || name.eq_ignore_ascii_case("host")
}

/// Returns whether setting this header means rewriting the authority.
pub(crate) fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case(":authority") || name.eq_ignore_ascii_case("host")
}

/// Checks that there is a name.
pub(crate) fn header_name(name: &str) -> Result<(), Invalid> {
    if name.is_empty() {
        return Err(Invalid::new("needs the name of a header, which must not be empty"));
    }
    Ok(())
}

/// Checks the `%…%` operators in a header's value: each must be closed, and a percent sign is written `%%`.
pub(crate) fn header_value(value: &str) -> Result<(), Invalid> {
    let mut rest = value;
    while let Some((_, after)) = rest.split_once('%') {
        if let Some(tail) = after.strip_prefix('%') {
            rest = tail;
            continue;
        }
        rest = operator(after).ok_or_else(|| {
            Invalid::new(format!(
                "{value:?} has an operator that is not closed by `%`; a percent sign is written `%%`"
            ))
        })?;
    }
    Ok(())
}

/// Skips an operator such as `HOSTNAME%`, `REQ(x?y):10%` or `START_TIME(%s)%`, whose arguments may hold `%`.
fn operator(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_')?;
    if end == 0 {
        return None;
    }
    let mut rest = &text[end..];
    if let Some(arguments) = rest.strip_prefix('(') {
        rest = &arguments[arguments.find(')')? + 1..];
    }
    if let Some(length) = rest.strip_prefix(':') {
        rest = length.trim_start_matches(|c: char| c.is_ascii_digit());
    }
    rest.strip_prefix('%')
}

/// Returns whether `method` is one of HTTP's.
pub(crate) fn is_method(method: &str) -> bool {
    matches!(method, "CONNECT" | "DELETE" | "GET" | "HEAD" | "OPTIONS" | "PATCH" | "POST" | "PUT" | "TRACE")
}

/// Checks one condition of `retryOn`: Envoy's words, or the code of a known status.
pub(crate) fn retry_condition(condition: &str) -> Result<(), Invalid> {
    const WORDS: [&str; 16] = [
        "5xx",
        "cancelled",
        "connect-failure",
        "deadline-exceeded",
        "envoy-ratelimited",
        "gateway-error",
        "http3-post-connect-failure",
        "internal",
        "refused-stream",
        "reset",
        "reset-before-request",
        "resource-exhausted",
        "retriable-4xx",
        "retriable-headers",
        "retriable-status-codes",
        "unavailable",
    ];
    if WORDS.contains(&condition) || condition.parse().is_ok_and(is_known_status) {
        return Ok(());
    }
    Err(Invalid::new(format!(
        "{condition:?} is not a retry condition: use a status code or one of {}",
        WORDS.join(", ")
    )))
}

fn is_known_status(code: u16) -> bool {
    matches!(
        code,
        100..=103 | 200..=208 | 226 | 300..=305 | 307 | 308 | 400..=418 | 421..=426 | 428 | 429 | 431 | 451 | 500..=508
            | 510 | 511
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operators_in_values_must_be_closed() {
        for good in
            ["", "plain", "100%%", "%HOSTNAME%", "a %REQ(x?y):10% b", "%START_TIME(%s.%3f)%", "%PROTOCOL%%%"]
        {
            assert_eq!(header_value(good), Ok(()), "{good}");
        }
        for bad in ["50%", "%HOSTNAME", "abcd%oijasodifj", "%%%", "%REQ(x%", "% %"] {
            assert!(header_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn retry_conditions() {
        assert_eq!(retry_condition("5xx"), Ok(()));
        assert_eq!(retry_condition("503"), Ok(()));
        for bad in ["", "999", "5XX", "sometimes"] {
            assert!(retry_condition(bad).is_err(), "{bad}");
        }
    }
}
