//! Files of the Kubernetes downward API: one `key="quoted value"` a line, quoted as Go does.

use std::collections::BTreeMap;

/// Parses the file of a pod's labels or annotations.
///
/// # Errors
/// The line that is not understood, by number.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, String>, String> {
    let mut values = BTreeMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let entry = line.split_once('=').and_then(|(key, quoted)| Some((key, unquote(quoted)?)));
        let (key, value) = entry.ok_or_else(|| format!("line {number} is not key=\"value\""))?;
        values.insert(key.to_owned(), value);
    }
    Ok(values)
}

/// Reads a string literal of Go.
fn unquote(quoted: &str) -> Option<String> {
    let inner = quoted.trim_end().strip_prefix('"')?.strip_suffix('"')?;
    let mut bytes = Vec::with_capacity(inner.len());
    let mut rest = inner;
    while let Some(at) = rest.find(['\\', '"']) {
        bytes.extend_from_slice(&rest.as_bytes()[..at]);
        let escape = rest[at..].strip_prefix('\\')?;
        let kind = escape.chars().next()?;
        let after = &escape[kind.len_utf8()..];
        let digits = match kind {
            'x' => 2,
            'u' => 4,
            'U' => 8,
            '0'..='7' => {
                bytes.push(u8::from_str_radix(escape.get(..3)?, 8).ok()?);
                rest = &escape[3..];
                continue;
            }
            _ => {
                bytes.push(simple(kind)?);
                rest = after;
                continue;
            }
        };
        let number = u32::from_str_radix(after.get(..digits)?, 16).ok()?;
        if kind == 'x' {
            bytes.push(u8::try_from(number).ok()?);
        } else {
            bytes.extend_from_slice(char::from_u32(number)?.encode_utf8(&mut [0; 4]).as_bytes());
        }
        rest = &after[digits..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    String::from_utf8(bytes).ok()
}

fn simple(kind: char) -> Option<u8> {
    Some(match kind {
        'a' => 7,
        'b' => 8,
        'f' => 12,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 11,
        '\\' => b'\\',
        '"' => b'"',
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_and_multi_line_annotations_are_read() {
        let text = "app=\"reviews\"\nempty=\"\"\nproxy.istio.io/config=\"concurrency: 1\\nproxyMetadata:\\n  A: \\\"b\\\"\\n\"\n\nodd=\"caf\\u00e9 \\x41\\101\"\n";
        let values = parse(text).unwrap();
        assert_eq!(values["app"], "reviews");
        assert_eq!(values["empty"], "");
        assert_eq!(values["proxy.istio.io/config"], "concurrency: 1\nproxyMetadata:\n  A: \"b\"\n");
        assert_eq!(values["odd"], "café AA");
    }

    #[test]
    fn what_is_no_literal_is_refused_by_line() {
        for text in ["a=b", "a", "a=\"\\q\"", "a=\"b\"c\"", "a=\"\\u12\"", "a=\"\\\""] {
            assert_eq!(
                parse(&format!("ok=\"1\"\n{text}")).unwrap_err(),
                "line 2 is not key=\"value\"",
                "{text}"
            );
        }
    }
}
