//! Errors for people: the message with its causes, in one line.

use std::error::Error;

/// Returns an error's message and those of its causes. Of a message with several lines the first is taken, and a cause
/// that the text before ends with is not said again.
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let message = error.to_string();
        let message = message.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
        if !message.is_empty() && !text.ends_with(message) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(message);
        }
        next = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{0}")]
    struct Step(&'static str, #[source] Option<Box<Self>>);

    fn chain(messages: &[&'static str]) -> Step {
        let (first, rest) = messages.split_first().unwrap();
        Step(first, (!rest.is_empty()).then(|| Box::new(chain(rest))))
    }

    #[test]
    fn causes_follow_each_once_and_in_one_line() {
        for (messages, expected) in [
            (&["a"][..], "a"),
            (&["cannot read x", "no such file"], "cannot read x: no such file"),
            (&["cannot read x: no such file", "no such file"], "cannot read x: no such file"),
            (&["a", "", "b", "b"], "a: b"),
            (&["cannot parse x", "\nline 1: unclosed\n  |\n1 | ["], "cannot parse x: line 1: unclosed"),
        ] {
            assert_eq!(one_line(&chain(messages)), expected);
        }
    }
}
