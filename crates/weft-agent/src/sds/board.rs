//! Who has taken which version of which secret.

use std::collections::BTreeMap;

/// Somebody who asks for secrets: a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SubscriberId(u64);

/// What has become of the newest version of a secret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Everybody who asks for it has it; also if that is nobody, since who comes later gets it at once.
    Settled,
    /// Somebody has not answered yet.
    Waiting,
    /// Somebody has refused it.
    Refused(String),
}

impl Progress {
    /// Returns the worse of the two.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Refused(reason), _) | (_, Self::Refused(reason)) => Self::Refused(reason),
            (Self::Waiting, _) | (_, Self::Waiting) => Self::Waiting,
            (Self::Settled, Self::Settled) => Self::Settled,
        }
    }
}

#[derive(Debug, Default)]
struct Answer {
    accepted: Option<String>,
    refused: Option<(String, String)>,
}

/// Everybody's answers.
#[derive(Debug, Default)]
pub struct Board {
    last: u64,
    answers: BTreeMap<(SubscriberId, String), Answer>,
}

impl Board {
    /// Lets somebody in.
    pub fn join(&mut self) -> SubscriberId {
        self.last += 1;
        SubscriberId(self.last)
    }

    /// Notes an interest.
    pub fn subscribe(&mut self, id: SubscriberId, name: &str) {
        self.answers.entry((id, name.to_owned())).or_default();
    }

    /// Notes that an interest is over.
    pub fn unsubscribe(&mut self, id: SubscriberId, name: &str) {
        self.answers.remove(&(id, name.to_owned()));
    }

    /// Notes that a version was taken.
    pub fn acknowledge(&mut self, id: SubscriberId, name: &str, version: &str) {
        if let Some(answer) = self.answers.get_mut(&(id, name.to_owned())) {
            answer.accepted = Some(version.to_owned());
            answer.refused = None;
        }
    }

    /// Notes that a version was refused.
    pub fn refuse(&mut self, id: SubscriberId, name: &str, version: &str, reason: &str) {
        if let Some(answer) = self.answers.get_mut(&(id, name.to_owned())) {
            answer.refused = Some((version.to_owned(), reason.to_owned()));
        }
    }

    /// Notes that somebody has gone.
    pub fn leave(&mut self, id: SubscriberId) {
        self.answers.retain(|(subscriber, _), _| *subscriber != id);
    }

    /// Returns what has become of a version of a secret.
    pub fn progress(&self, name: &str, version: &str) -> Progress {
        let answers = self.answers.iter().filter(|((_, secret), _)| secret == name).map(|(_, answer)| answer);
        answers.fold(Progress::Settled, |progress, answer| {
            progress.and(match (&answer.refused, &answer.accepted) {
                (Some((refused, reason)), _) if refused == version => Progress::Refused(reason.clone()),
                (_, Some(accepted)) if accepted == version => Progress::Settled,
                _ => Progress::Waiting,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_settled_when_everybody_has_it() {
        let mut board = Board::default();
        assert_eq!(board.progress("ROOTCA", "1"), Progress::Settled);
        let (one, other) = (board.join(), board.join());
        board.subscribe(one, "ROOTCA");
        board.subscribe(other, "ROOTCA");
        board.subscribe(other, "default");
        board.acknowledge(one, "ROOTCA", "1");
        assert_eq!(board.progress("ROOTCA", "1"), Progress::Waiting);
        board.acknowledge(other, "ROOTCA", "1");
        assert_eq!(board.progress("ROOTCA", "1"), Progress::Settled);
        assert_eq!(board.progress("ROOTCA", "2"), Progress::Waiting);
        board.acknowledge(one, "ROOTCA", "2");
        board.leave(other);
        assert_eq!(board.progress("ROOTCA", "2"), Progress::Settled);
        assert_eq!(board.progress("default", "1"), Progress::Settled);
    }

    #[test]
    fn a_refusal_counts_until_the_version_is_taken_after_all() {
        let mut board = Board::default();
        let one = board.join();
        board.subscribe(one, "ROOTCA");
        board.refuse(one, "ROOTCA", "2", "bad certificate");
        assert_eq!(board.progress("ROOTCA", "2"), Progress::Refused("bad certificate".to_owned()));
        assert_eq!(board.progress("ROOTCA", "3"), Progress::Waiting);
        board.acknowledge(one, "ROOTCA", "3");
        assert_eq!(board.progress("ROOTCA", "3"), Progress::Settled);
        board.unsubscribe(one, "ROOTCA");
        assert_eq!(board.progress("ROOTCA", "4"), Progress::Settled);
    }
}
