//! Checking expressions that RE2 will run, with a parser of a dialect that differs a little.

use super::Invalid;
use regex_syntax::ParserBuilder;

/// RE2 refuses more repetitions than this.
const MAX_REPETITIONS: u32 = 1000;

/// Checks the syntax of an RE2 expression.
///
/// The parser at hand reads the `regex` crate's dialect, which is RE2's but for a few characters; those are rewritten
/// first. An expression that passes here can still be refused by Envoy if RE2 finds its program too large.
pub(crate) fn regex(pattern: &str) -> Result<(), Invalid> {
    if pattern.len() > 64 * 1024 {
        return Err(Invalid::new("is longer than 64 KiB"));
    }
    let dialect = to_dialect(pattern)?;
    let parsed = ParserBuilder::new().nest_limit(250).build().parse(&dialect);
    parsed.map(drop).map_err(|error| {
        let reason = match &error {
            regex_syntax::Error::Parse(error) => error.kind().to_string(),
            regex_syntax::Error::Translate(error) => error.kind().to_string(),
            _ => "unknown error".to_owned(),
        };
        Invalid::new(format!("{pattern:?} is not an RE2 expression: {reason}"))
    })
}

/// Rewrites what RE2 reads differently: `\Q…\E`, `\C`, braces that are no repetition, and the operators that only the
/// other dialect has inside of brackets.
fn to_dialect(pattern: &str) -> Result<String, Invalid> {
    let refused = |reason: String| Invalid::new(format!("{pattern:?} is not an RE2 expression: {reason}"));
    let mut out = String::with_capacity(pattern.len() + 8);
    let mut rest = pattern;
    let mut last = Last::Other;
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        let before = std::mem::replace(&mut last, Last::Other);
        match c {
            '\\' => rest = escape(rest, &mut out),
            '[' => rest = class(rest, &mut out),
            '?' if before == Last::Repetition => {
                out.push('?');
                last = Last::Lazy;
            }
            '*' | '+' | '?' => {
                if before != Last::Other {
                    return Err(refused("a repetition cannot be repeated".to_owned()));
                }
                out.push(c);
                last = Last::Repetition;
            }
            '{' => match repetition(rest) {
                Some((least, most, length)) => {
                    if least.max(most) > MAX_REPETITIONS {
                        return Err(refused(format!("more than {MAX_REPETITIONS} repetitions")));
                    }
                    if before != Last::Other {
                        return Err(refused("a repetition cannot be repeated".to_owned()));
                    }
                    out.push('{');
                    out.push_str(&rest[..length]);
                    rest = &rest[length..];
                    last = Last::Repetition;
                }
                None => out.push_str("\\{"),
            },
            '}' => out.push_str("\\}"),
            c => out.push(c),
        }
    }
    Ok(out)
}

/// What stands before the character at hand.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    Repetition,
    /// A repetition that takes as little as possible.
    Lazy,
    Other,
}

fn escape<'a>(rest: &'a str, out: &mut String) -> &'a str {
    if let Some(quoted) = rest.strip_prefix('Q') {
        let (literal, rest) = quoted.split_once("\\E").unwrap_or((quoted, ""));
        out.push_str(&regex_syntax::escape(literal));
        return rest;
    }
    let Some(c) = rest.chars().next() else {
        out.push('\\');
        return rest;
    };
    match c {
        'C' => out.push('.'),
        // Word boundaries in the other dialect, plain characters in RE2.
        '<' | '>' => out.push(c),
        c => {
            out.push('\\');
            out.push(c);
            if c == 'p' || c == 'P' || c == 'x' {
                // `\p{Greek}` and `\x{10FFFF}`: these braces are no repetition.
                if let Some(end) = rest[1..].strip_prefix('{').and_then(|name| name.find('}')) {
                    out.push_str(&rest[1..end + 3]);
                    return &rest[end + 3..];
                }
            }
        }
    }
    &rest[c.len_utf8()..]
}

fn class<'a>(rest: &'a str, out: &mut String) -> &'a str {
    out.push('[');
    let mut rest = rest;
    if let Some(tail) = rest.strip_prefix('^') {
        out.push('^');
        rest = tail;
    }
    if let Some(tail) = rest.strip_prefix(']') {
        out.push_str("\\]");
        rest = tail;
    }
    while let Some(c) = rest.chars().next() {
        let tail = &rest[c.len_utf8()..];
        rest = match c {
            ']' => {
                out.push(']');
                return tail;
            }
            '\\' => escape(tail, out),
            '[' => match tail.starts_with(':').then(|| tail.find(":]")).flatten() {
                Some(end) => {
                    out.push('[');
                    out.push_str(&tail[..end + 2]);
                    &tail[end + 2..]
                }
                None => {
                    out.push_str("\\[");
                    tail
                }
            },
            '&' | '~' => {
                out.push('\\');
                out.push(c);
                tail
            }
            '-' if tail.starts_with('-') => {
                out.push_str("\\-");
                tail
            }
            c => {
                out.push(c);
                tail
            }
        };
    }
    rest
}

/// Reads the `n}`, `n,}` or `n,m}` after a brace, and how long it is. Anything else is literal text to RE2.
fn repetition(rest: &str) -> Option<(u32, u32, usize)> {
    let (inside, _) = rest.split_once('}')?;
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u32::MAX))
    };
    let length = inside.len() + 1;
    match inside.split_once(',') {
        Some((least, "")) => number(least).map(|least| (least, 0, length)),
        Some((least, most)) => Some((number(least)?, number(most)?, length)),
        None => number(inside).map(|count| (count, 0, length)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_re2_takes_is_taken() {
        for good in [
            "a.*b",
            "^/v[12]/.*$",
            "(?i)abc",
            "(?P<name>x)",
            "a{2,3}",
            "a{2}",
            "a*?",
            "a{2}?",
            "a{,5}",
            "a{x}",
            "{",
            "}",
            r"\Qa.b\E+",
            r"[[]",
            r"[a&&b]",
            r"[a~~b]",
            r"[]a]",
            r"[^]a]",
            r"[[:alpha:]_]",
            r"\pL",
            r"\p{Greek}+",
            r"\x{41}",
            r"\.",
            r"\/",
            r"\-",
            r"\C",
            "",
            "a|",
            "[a--]",
            r"\d{3}-\d{4}",
            "[0-9a-f]{8}",
            r"\<",
        ] {
            assert_eq!(regex(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_re2_refuses_is_refused() {
        for bad in [
            "*",
            "a(",
            "[",
            "[a",
            "a**",
            "a*??",
            "a{2}{3}",
            "(?=x)",
            r"\1",
            "a{1001}",
            "a{3,2}",
            r"\",
            "(?<!a)b",
            r"\p{Nonsense}",
            ")",
        ] {
            assert!(regex(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn errors_quote_the_expression() {
        let error = regex("a(b").unwrap_err().to_string();
        assert_eq!(error, "\"a(b\" is not an RE2 expression: unclosed group");
    }
}
