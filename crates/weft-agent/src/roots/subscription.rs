//! The agent's own subscription to the roots, without I/O.
//!
//! When roots are replaced, the authority may sign with the new root only after everybody trusts it. So the agent
//! acknowledges roots only when every secret stream of its Envoy has taken them:
//!
//! ```text
//! idle ─ response ─▶ installing ─ Envoy took them ─▶ ACK, idle
//!                        │ Envoy refused them ──────▶ NACK, idle
//!                        └ newer response: the older one is never answered
//! ```
//!
//! It is a delta subscription to the type `Secret` and the name `ROOTCA` on the control plane's ordinary port.

use crate::sds::board::Progress;

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Wait,
    /// Tell the control plane that they are in use.
    Acknowledge {
        /// The response that is answered.
        nonce: String,
    },
    /// Tell the control plane that they are not.
    Refuse {
        /// The response that is answered.
        nonce: String,
        /// Why.
        reason: String,
    },
}

/// The state of the subscription.
#[derive(Debug, Default)]
pub struct Subscription {
    /// What Envoy has.
    installed: Option<String>,
    /// What Envoy is about to take: nonce and version.
    installing: Option<(String, String)>,
}

impl Subscription {
    /// Returns the version to name when a stream begins, so that the same roots are not sent again.
    pub fn known_version(&self) -> Option<&str> {
        self.installed.as_deref()
    }

    /// Notes that roots of a version were given to Envoy.
    pub fn on_roots(&mut self, nonce: &str, version: &str) {
        self.installing = Some((nonce.to_owned(), version.to_owned()));
    }

    /// Takes an answer that has no roots in it, or none that can be read. Such an answer hinders no other.
    pub fn on_nothing(&mut self, nonce: &str, problem: Option<String>) -> Action {
        self.installing = None;
        match problem {
            None => Action::Acknowledge { nonce: nonce.to_owned() },
            Some(reason) => Action::Refuse { nonce: nonce.to_owned(), reason },
        }
    }

    /// Takes what has become of the roots that Envoy was given.
    pub fn on_progress(&mut self, progress: Progress) -> Action {
        match (self.installing.take(), progress) {
            (None, _) => Action::Wait,
            (waiting, Progress::Waiting) => {
                self.installing = waiting;
                Action::Wait
            }
            (Some((nonce, version)), Progress::Settled) => {
                self.installed = Some(version);
                Action::Acknowledge { nonce }
            }
            (Some((nonce, _)), Progress::Refused(reason)) => Action::Refuse { nonce, reason },
        }
    }

    /// Notes that the stream has ended; what it asked cannot be answered any more.
    pub fn on_disconnect(&mut self) {
        self.installing = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acknowledge(nonce: &str) -> Action {
        Action::Acknowledge { nonce: nonce.to_owned() }
    }

    #[test]
    fn roots_are_acknowledged_only_when_envoy_has_them() {
        let mut subscription = Subscription::default();
        assert_eq!(subscription.on_progress(Progress::Settled), Action::Wait);
        subscription.on_roots("1", "a");
        assert_eq!(subscription.on_progress(Progress::Waiting), Action::Wait);
        assert_eq!(subscription.known_version(), None);
        assert_eq!(subscription.on_progress(Progress::Settled), acknowledge("1"));
        assert_eq!(subscription.known_version(), Some("a"));
        assert_eq!(subscription.on_progress(Progress::Settled), Action::Wait, "once");
    }

    #[test]
    fn a_newer_response_takes_the_place_of_one_that_is_being_installed() {
        let mut subscription = Subscription::default();
        subscription.on_roots("1", "a");
        subscription.on_roots("2", "b");
        assert_eq!(subscription.on_progress(Progress::Settled), acknowledge("2"));
        assert_eq!(subscription.known_version(), Some("b"));
    }

    #[test]
    fn what_envoy_refuses_is_refused() {
        let mut subscription = Subscription::default();
        subscription.on_roots("1", "a");
        subscription.on_progress(Progress::Settled);
        subscription.on_roots("2", "b");
        let refused = Action::Refuse { nonce: "2".to_owned(), reason: "bad".to_owned() };
        assert_eq!(subscription.on_progress(Progress::Refused("bad".to_owned())), refused);
        assert_eq!(subscription.known_version(), Some("a"));
    }

    #[test]
    fn answers_without_roots_are_answered_at_once() {
        let mut subscription = Subscription::default();
        assert_eq!(subscription.on_nothing("1", None), acknowledge("1"));
        let refused = Action::Refuse { nonce: "2".to_owned(), reason: "empty".to_owned() };
        assert_eq!(subscription.on_nothing("2", Some("empty".to_owned())), refused);
    }

    #[test]
    fn a_stream_that_has_ended_is_not_answered() {
        let mut subscription = Subscription::default();
        subscription.on_roots("1", "a");
        subscription.on_disconnect();
        assert_eq!(subscription.on_progress(Progress::Settled), Action::Wait);
        assert_eq!(subscription.known_version(), None);
    }
}
