//! What an error of a list or watch means.

use kube::Error;
use kube::runtime::watcher;
use std::error::Error as _;

/// An error of a list or watch, judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Trouble {
    /// What went wrong, for people.
    pub(crate) message: String,
    /// What it says about the kind.
    pub(crate) verdict: Verdict,
    /// Whether events may be lost, or the watch cannot be taken up where it broke off. Only a list helps then.
    pub(crate) must_list: bool,
}

/// What an error says about the kind that is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// The API server does not serve the kind.
    NotServed,
    /// The kind may not be listed.
    Forbidden,
    /// The last version is too old to watch from: this happens in the best of meshes.
    Expired,
    /// Nothing.
    Failed,
}

impl Trouble {
    /// Judges an error of [`watcher`].
    ///
    /// The watcher lists again by itself after a failed list and an expired watch. In all other cases it goes on with
    /// the watch it has, or tries to start it from the same version for ever, which is wrong where an event could not
    /// be read (the change in it would be lost) and where the server does not know the version (after its data was
    /// restored from a backup).
    pub(crate) fn of(error: &watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error) => Self {
                message: format!("cannot list: {}", reason(error)),
                verdict: verdict(error),
                must_list: false,
            },
            watcher::Error::WatchStartFailed(error) => Self {
                message: format!("cannot watch: {}", reason(error)),
                verdict: match verdict(error) {
                    Verdict::Expired => Verdict::Expired,
                    // Only lists say whether a kind is there.
                    _ => Verdict::Failed,
                },
                must_list: code(error).is_some_and(|code| !is_busy(code)),
            },
            watcher::Error::WatchError(status) => Self {
                message: format!("the API server ended the watch: {}", status_reason(status)),
                verdict: if status.code == 410 { Verdict::Expired } else { Verdict::Failed },
                must_list: !is_busy(status.code),
            },
            watcher::Error::WatchFailed(error) => Self {
                message: format!("the watch broke: {}", reason(error)),
                verdict: Verdict::Failed,
                must_list: !matches!(error, Error::ReadEvents(_) | Error::HyperError(_) | Error::Service(_)),
            },
            watcher::Error::NoResourceVersion => Self {
                message: "the API server sent an object without a version".to_owned(),
                verdict: Verdict::Failed,
                must_list: true,
            },
        }
    }
}

/// Returns what happened in words: what the API server says, or the causes of the error.
pub(crate) fn reason(error: &Error) -> String {
    if let Error::Api(status) = error {
        return status_reason(status);
    }
    let mut text = String::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.contains(&words) {
            let separator = if text.is_empty() { "" } else { ": " };
            text = format!("{text}{separator}{words}");
        }
        cause = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

fn status_reason(status: &kube::core::Status) -> String {
    match status.message.as_str() {
        "" => format!("status {}", status.code),
        message => format!("{message} (status {})", status.code),
    }
}

fn code(error: &Error) -> Option<u16> {
    if let Error::Api(status) = error { Some(status.code) } else { None }
}

fn verdict(error: &Error) -> Verdict {
    match code(error) {
        Some(404) => Verdict::NotServed,
        Some(403) => Verdict::Forbidden,
        Some(410) => Verdict::Expired,
        _ => Verdict::Failed,
    }
}

/// Returns whether a status says no more than that the server has no time now.
fn is_busy(code: u16) -> bool {
    matches!(code, 429 | 503)
}
