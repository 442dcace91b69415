//! The protocol of one SDS stream, without I/O: both variants, state of the world and delta.
//!
//! A secret that is not there yet is simply not sent: Envoy waits for it. One that changes is sent to everybody who
//! asked. None is ever removed, since an Envoy without its certificate could serve nobody.

use super::secret::Secret;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// What a client says, of either variant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// The response that it answers; empty for none.
    pub nonce: String,
    /// What it did not like about that.
    pub error: Option<String>,
    /// The names that it asks for from now on.
    pub names: Names,
}

/// How a client says which names it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// All of them (state of the world).
    All(Vec<String>),
    /// What is different (delta).
    Change {
        /// Further names.
        add: Vec<String>,
        /// Names that it does not ask for any more.
        remove: Vec<String>,
        /// Versions that it has from an earlier stream.
        known: BTreeMap<String, String>,
    },
}

impl Default for Names {
    fn default() -> Self {
        Self::All(Vec::new())
    }
}

/// What has happened, for others to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// It asks for a secret.
    Subscribed(String),
    /// It does not ask for a secret any more.
    Unsubscribed(String),
    /// It has taken a version of a secret.
    Acknowledged(String, Arc<str>),
    /// It has refused a version of a secret.
    Refused(String, Arc<str>, String),
}

/// What the client is to be sent.
#[derive(Clone, Debug)]
pub struct Response {
    /// Tells responses of a stream apart.
    pub nonce: String,
    /// The secrets, by name.
    pub secrets: Vec<(String, Secret)>,
}

/// What one response had in it: its nonce, and versions by name.
type Sent = (u64, Vec<(String, Arc<str>)>);

/// One stream.
#[derive(Debug, Default)]
pub struct Session {
    /// The version that was sent last, by name; `None` if none was sent on this stream.
    subscribed: BTreeMap<String, Option<Arc<str>>>,
    /// What was sent and is not answered, oldest first.
    outstanding: Vec<Sent>,
    nonce: u64,
}

impl Session {
    /// Takes a request.
    pub fn on_request(&mut self, request: Request) -> Vec<Event> {
        let mut events = self.settle(&request.nonce, request.error.as_deref());
        match request.names {
            Names::All(names) => self.replace(names, request.nonce.is_empty(), &mut events),
            Names::Change { add, remove, known } => {
                for name in remove {
                    if self.subscribed.remove(&name).is_some() {
                        events.push(Event::Unsubscribed(name));
                    }
                }
                for name in add {
                    // Asking again for what one asks for already is asking to be sent it again.
                    let version = known.get(&name).map(|version| Arc::from(version.as_str()));
                    if self.subscribed.insert(name.clone(), version.clone()).is_none() {
                        events.push(Event::Subscribed(name.clone()));
                    }
                    events.extend(version.map(|version| Event::Acknowledged(name, version)));
                }
            }
        }
        events
    }

    fn replace(&mut self, names: Vec<String>, first: bool, events: &mut Vec<Event>) {
        let names: BTreeSet<String> = names.into_iter().collect();
        let gone: Vec<String> =
            self.subscribed.keys().filter(|name| !names.contains(*name)).cloned().collect();
        for name in gone {
            self.subscribed.remove(&name);
            events.push(Event::Unsubscribed(name));
        }
        for name in names {
            if first || !self.subscribed.contains_key(&name) {
                self.subscribed.insert(name.clone(), None);
                events.push(Event::Subscribed(name));
            }
        }
    }

    /// An answer to a response settles those before it.
    fn settle(&mut self, nonce: &str, error: Option<&str>) -> Vec<Event> {
        let Some(at) = nonce
            .parse()
            .ok()
            .and_then(|nonce: u64| self.outstanding.iter().position(|(sent, _)| *sent == nonce))
        else {
            return Vec::new();
        };
        let Some((_, secrets)) = self.outstanding.drain(..=at).next_back() else { return Vec::new() };
        let event = |(name, version)| match error {
            None => Event::Acknowledged(name, version),
            Some(reason) => Event::Refused(name, version, reason.to_owned()),
        };
        secrets.into_iter().map(event).collect()
    }

    /// Returns what is to be sent now, if anything is; `secret` looks secrets up.
    pub fn next_response(&mut self, secret: impl Fn(&str) -> Option<Secret>) -> Option<Response> {
        let mut secrets = Vec::new();
        for (name, sent) in &mut self.subscribed {
            let Some(secret) = secret(name) else { continue };
            if sent.as_ref() != Some(&secret.version) {
                *sent = Some(secret.version.clone());
                secrets.push((name.clone(), secret));
            }
        }
        if secrets.is_empty() {
            return None;
        }
        self.nonce += 1;
        let versions = secrets.iter().map(|(name, secret)| (name.clone(), secret.version.clone()));
        self.outstanding.push((self.nonce, versions.collect()));
        Some(Response { nonce: self.nonce.to_string(), secrets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(names: &[&str], nonce: &str) -> Request {
        let names = Names::All(names.iter().map(|name| (*name).to_owned()).collect());
        Request { nonce: nonce.to_owned(), error: None, names }
    }

    fn change(add: &[&str], remove: &[&str], known: &[(&str, &str)]) -> Request {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let known = known.iter().map(|(name, version)| ((*name).to_owned(), (*version).to_owned())).collect();
        Request { names: Names::Change { add: list(add), remove: list(remove), known }, ..Request::default() }
    }

    fn roots(content: &'static str) -> impl Fn(&str) -> Option<Secret> {
        move |name| (name == "ROOTCA").then(|| Secret::roots(name, content.as_bytes()))
    }

    fn sent(session: &mut Session, content: &'static str) -> Vec<String> {
        let response = session.next_response(roots(content));
        response
            .map_or_else(Vec::new, |response| response.secrets.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn what_is_not_there_is_waited_for_and_what_changes_is_sent() {
        let mut session = Session::default();
        let events = session.on_request(ask(&["default", "ROOTCA"], ""));
        assert_eq!(events.len(), 2);
        assert!(session.next_response(|_| None).is_none());
        assert_eq!(sent(&mut session, "a"), ["ROOTCA"]);
        assert_eq!(sent(&mut session, "a"), [""; 0]);
        assert_eq!(sent(&mut session, "b"), ["ROOTCA"]);
    }

    #[test]
    fn answers_settle_what_was_sent_before() {
        let mut session = Session::default();
        session.on_request(ask(&["ROOTCA"], ""));
        sent(&mut session, "a");
        sent(&mut session, "b");
        let version = |content: &'static str| roots(content)("ROOTCA").unwrap().version;
        let events = session.on_request(ask(&["ROOTCA"], "2"));
        assert_eq!(events, [Event::Acknowledged("ROOTCA".to_owned(), version("b"))]);
        // A late answer to what is settled already, and one to what was never sent.
        assert_eq!(session.on_request(ask(&["ROOTCA"], "1")), []);
        assert_eq!(session.on_request(ask(&["ROOTCA"], "77")), []);
        assert_eq!(sent(&mut session, "b"), [""; 0], "an answer is not a question");
    }

    #[test]
    fn a_refused_secret_is_not_sent_again_until_it_changes() {
        let mut session = Session::default();
        session.on_request(ask(&["ROOTCA"], ""));
        sent(&mut session, "a");
        let nack = Request { error: Some("bad".to_owned()), ..ask(&["ROOTCA"], "1") };
        assert!(matches!(&session.on_request(nack)[..], [Event::Refused(_, _, reason)] if reason == "bad"));
        assert_eq!(sent(&mut session, "a"), [""; 0]);
        assert_eq!(sent(&mut session, "b"), ["ROOTCA"]);
    }

    #[test]
    fn delta_clients_say_what_they_have() {
        let mut session = Session::default();
        let version = roots("a")("ROOTCA").unwrap().version;
        let events = session.on_request(change(&["ROOTCA"], &[], &[("ROOTCA", &version)]));
        assert_eq!(
            events,
            [
                Event::Subscribed("ROOTCA".to_owned()),
                Event::Acknowledged("ROOTCA".to_owned(), version.clone())
            ]
        );
        assert_eq!(sent(&mut session, "a"), [""; 0]);
        // Asking again is asking to be sent it again.
        session.on_request(change(&["ROOTCA"], &[], &[]));
        assert_eq!(sent(&mut session, "a"), ["ROOTCA"]);
        assert_eq!(
            session.on_request(change(&[], &["ROOTCA", "other"], &[])),
            [Event::Unsubscribed("ROOTCA".to_owned())]
        );
        assert_eq!(sent(&mut session, "b"), [""; 0]);
    }

    #[test]
    fn names_left_out_are_not_asked_for_any_more() {
        let mut session = Session::default();
        session.on_request(ask(&["ROOTCA", "default"], ""));
        sent(&mut session, "a");
        let events = session.on_request(ask(&["default", "file-root:/a"], "1"));
        assert!(events.contains(&Event::Unsubscribed("ROOTCA".to_owned())));
        assert!(events.contains(&Event::Subscribed("file-root:/a".to_owned())));
        assert_eq!(sent(&mut session, "b"), [""; 0]);
    }
}
