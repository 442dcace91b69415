//! Answers, within what the API server takes.

use crate::review::{Response, Status};

/// The API server shortens longer warnings, and drops what is over all of them.
const WARNING: usize = 250;
const WARNINGS: usize = 4000;

impl Response {
    /// Lets the object through as it is.
    pub(crate) fn allow(warnings: impl IntoIterator<Item = String>) -> Self {
        Self { allowed: true, warnings: bounded(warnings), ..Self::default() }
    }

    /// Refuses the object.
    pub(crate) fn refuse(message: String) -> Self {
        let status = Status { message, reason: "Invalid", code: 422 };
        Self { status: Some(status), ..Self::default() }
    }
}

fn bounded(warnings: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut left = WARNINGS;
    let mut kept = Vec::new();
    for warning in warnings {
        let warning = shortened(warning);
        let Some(rest) = left.checked_sub(warning.len()) else { break };
        left = rest;
        kept.push(warning);
    }
    kept
}

fn shortened(mut text: String) -> String {
    if text.len() > WARNING {
        let end = (0..=WARNING).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warnings_are_kept_short() {
        let many = (0..100).map(|_| "ü".repeat(300));
        let kept = Response::allow(many).warnings;
        assert!(kept.iter().all(|warning| warning.len() <= 256 && warning.ends_with('…')));
        assert!(kept.iter().map(String::len).sum::<usize>() <= WARNINGS && kept.len() > 10);
        assert_eq!(Response::allow(["a".to_owned()]).warnings, ["a"]);
    }
}
