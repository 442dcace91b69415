//! The lease of an election, at the API server.

use super::election::{Claim, Election, Record, Step};
use crate::trouble::reason;
use http::{Method, Request, StatusCode};
use k8s_api::meta::Time;
use kube::Client;
use serde::Deserialize;
use serde_json::{Value, json};
use std::time::{Duration, SystemTime};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a request may take.
const LIMIT: Duration = Duration::from_secs(5);

/// A lease to hold.
pub(super) struct Lease {
    pub(super) client: Client,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) identity: String,
    pub(super) election: Election,
}

/// What came of a request.
enum Outcome {
    Done(Record),
    /// Somebody else was faster.
    Conflict,
    Failed(String),
}

impl Lease {
    /// Tells in `leads` until when this process is the leader, if nothing else happens. Gives the lease back at `stop`.
    pub(super) async fn hold(mut self, leads: watch::Sender<Option<Instant>>, stop: CancellationToken) {
        let mut failing = None;
        while !stop.is_cancelled() {
            let asked = Instant::now();
            let failure = match self.election.step(asked) {
                Step::Wait(until) => {
                    tokio::select! {
                        () = tokio::time::sleep_until(until) => {}
                        () = stop.cancelled() => {}
                    }
                    continue;
                }
                Step::Look => match self.look().await {
                    Ok(record) => {
                        self.election.saw(record, Instant::now());
                        None
                    }
                    Err(failure) => Some(failure),
                },
                Step::Claim(claim) => match self.claim(&claim).await {
                    Outcome::Done(record) => {
                        self.election.won(record, asked, Instant::now());
                        None
                    }
                    Outcome::Conflict => {
                        self.election.lost();
                        None
                    }
                    Outcome::Failed(failure) => Some(failure),
                },
            };
            if let Some(failure) = &failure {
                self.election.failed(Instant::now());
                if failing.as_ref() != Some(failure) {
                    tracing::warn!(lease = self.name, reason = failure, "cannot look after a lease");
                }
            }
            failing = failure;
            self.tell(&leads);
        }
        // Nothing is begun any more before somebody else may begin.
        leads.send_replace(None);
        self.release().await;
    }

    fn tell(&self, leads: &watch::Sender<Option<Instant>>) {
        let now = Instant::now();
        let until = self.election.leads_until(now);
        let led = leads.borrow().is_some();
        if led != until.is_some() {
            let what = if until.is_some() { "leads now" } else { "does not lead any more" };
            tracing::info!(lease = self.name, identity = self.identity, "{what}");
        }
        leads.send_if_modified(|known| std::mem::replace(known, until) != until);
    }

    async fn look(&self) -> Result<Option<Record>, String> {
        match self.send(Method::GET, true, None).await {
            Ok(lease) => Ok(Some(read(lease))),
            Err(Some((StatusCode::NOT_FOUND, _))) => Ok(None),
            Err(failure) => Err(words(failure)),
        }
    }

    async fn claim(&self, claim: &Claim) -> Outcome {
        let now = now();
        let body = self.body(
            claim.replaces.as_deref(),
            &self.identity,
            &json!({
                "acquireTime": claim.acquired.as_ref().unwrap_or(&now),
                "renewTime": now,
                "leaseTransitions": claim.transitions,
            }),
        );
        let sent = match claim.replaces {
            Some(_) => self.send(Method::PUT, true, Some(body)).await,
            None => self.send(Method::POST, false, Some(body)).await,
        };
        match sent {
            Ok(lease) => Outcome::Done(read(lease)),
            Err(Some((StatusCode::CONFLICT | StatusCode::NOT_FOUND, _))) => Outcome::Conflict,
            Err(failure) => Outcome::Failed(words(failure)),
        }
    }

    async fn release(&mut self) {
        let Some(held) = self.election.release(Instant::now()) else { return };
        let body = self.body(
            Some(&held.version),
            "",
            &json!({
                "renewTime": now(), "leaseTransitions": held.transitions,
            }),
        );
        match self.send(Method::PUT, true, Some(body)).await {
            Ok(_) => tracing::info!(lease = self.name, "a lease is given back"),
            // Others take it when it is over.
            Err(failure) => {
                tracing::warn!(lease = self.name, reason = words(failure), "cannot give a lease back")
            }
        }
    }

    fn body(&self, version: Option<&str>, holder: &str, times: &Value) -> Value {
        let mut spec = times.clone();
        spec["holderIdentity"] = json!(holder);
        spec["leaseDurationSeconds"] = json!(super::election::Pace::STANDARD.duration.as_secs());
        json!({
            "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
            "metadata": { "namespace": self.namespace, "name": self.name, "resourceVersion": version },
            "spec": spec,
        })
    }

    /// Sends a request. A failure without a status is one of the way, or that it took too long.
    async fn send(
        &self,
        method: Method,
        is_named: bool,
        body: Option<Value>,
    ) -> Result<Wire, Option<(StatusCode, String)>> {
        let base = format!("/apis/coordination.k8s.io/v1/namespaces/{}/leases", self.namespace);
        let path = if is_named { format!("{base}/{}", self.name) } else { base };
        let body = body.map(|body| body.to_string().into_bytes()).unwrap_or_default();
        let request = Request::builder().method(method).uri(path);
        let request = request.header(http::header::CONTENT_TYPE, "application/json").body(body);
        let Ok(request) = request else { return Err(None) };
        match tokio::time::timeout(LIMIT, self.client.request(request)).await {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(kube::Error::Api(status))) => {
                let code = StatusCode::from_u16(status.code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
                Err(Some((code, status.message)))
            }
            Ok(Err(error)) => Err(Some((StatusCode::BAD_GATEWAY, reason(&error)))),
            Err(_) => Err(None),
        }
    }
}

fn words(failure: Option<(StatusCode, String)>) -> String {
    failure.map_or_else(|| format!("no answer within {LIMIT:?}"), |(_, message)| message)
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct Wire {
    metadata: Metadata,
    spec: Spec,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Spec {
    holder_identity: Option<String>,
    lease_duration_seconds: Option<u32>,
    lease_transitions: Option<u32>,
    acquire_time: Option<String>,
}

fn read(lease: Wire) -> Record {
    let Wire { metadata, spec } = lease;
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        duration: Duration::from_secs(spec.lease_duration_seconds.unwrap_or_default().into()),
        transitions: spec.lease_transitions.unwrap_or_default(),
        acquired: spec.acquire_time,
        version: metadata.resource_version,
    }
}

/// For people: no decision rests on it.
/// Returns the time as conditions have it.
pub(super) fn now_in_seconds() -> String {
    match SystemTime::now().try_into().map(Time) {
        Ok(now) => format!("{:.0}", now.0),
        Err(_) => "1970-01-01T00:00:00Z".to_owned(),
    }
}

fn now() -> String {
    match SystemTime::now().try_into().map(Time) {
        Ok(now) => format!("{:.6}", now.0),
        Err(_) => "1970-01-01T00:00:00.000000Z".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_kubernetes_reads_them() {
        let now = now();
        let (_, fraction) = now.split_once('.').unwrap();
        assert!(fraction.len() == 7 && fraction.ends_with('Z'), "{now}");
        let _: Time = serde_json::from_value(json!(now)).unwrap();
    }

    #[test]
    fn a_lease_that_was_given_back_has_no_holder() {
        let lease = json!({"metadata": {"resourceVersion": "7"}, "spec": {"leaseDurationSeconds": 15}});
        let record = read(serde_json::from_value(lease).unwrap());
        assert_eq!((record.holder.as_str(), record.version.as_str()), ("", "7"));
        assert_eq!(record.duration, Duration::from_secs(15));
    }
}
