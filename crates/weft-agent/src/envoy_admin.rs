//! Envoy's administration: whether it is ready, how many connections it has, and telling it to drain.

use crate::http::{Answer, HttpError, Question};
use std::net::SocketAddr;
use std::time::Duration;

const READINESS: &str = "/stats?usedonly&filter=^(server\\.state|cluster_manager\\.cds\\.update_(success|rejected)|\
                         listener_manager\\.lds\\.update_(success|rejected)|cluster_manager\\.cds\\.init_fetch_timeout)$";
const CONNECTIONS: &str = "/stats?usedonly&filter=^listener\\..*downstream_cx_active$";

/// Envoy's administration.
#[derive(Clone, Copy, Debug)]
pub struct EnvoyAdmin {
    address: SocketAddr,
}

/// Why a proxy is not ready.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotReady {
    /// Its administration does not answer.
    #[error("Envoy does not answer: {0}")]
    Silent(String),
    /// It has not been told what to do.
    #[error("no configuration received: cds updates {cds}, lds updates {lds}")]
    NoConfiguration {
        /// Updates of clusters.
        cds: u64,
        /// Updates of listeners.
        lds: u64,
    },
    /// It is starting, or draining.
    #[error("Envoy is {0}")]
    State(&'static str),
    /// The agent is ending it.
    #[error("the proxy is draining")]
    Draining,
}

impl EnvoyAdmin {
    /// Returns the administration at an address.
    pub fn new(address: SocketAddr) -> Self {
        Self { address }
    }

    /// Asks for a path.
    pub async fn get(&self, path: &str) -> Result<Answer, HttpError> {
        Question { limit: 256 << 20, timeout: Duration::from_secs(30), ..Question::get(self.address, path) }
            .send()
            .await
    }

    /// Asks whether Envoy is ready: it has taken both clusters and listeners, and all that these wait for.
    pub async fn ready(&self) -> Result<(), NotReady> {
        let answer = Question { timeout: Duration::from_secs(1), ..Question::get(self.address, READINESS) };
        let answer = answer.send().await.map_err(|error| NotReady::Silent(error.to_string()))?;
        judge(&String::from_utf8_lossy(&answer.body))
    }

    /// Asks Envoy to drain. With `inbound_only` the application may still make calls.
    pub async fn drain(&self, inbound_only: bool) -> Result<(), HttpError> {
        let scope = if inbound_only { "inboundonly&" } else { "" };
        let path = format!("/drain_listeners?{scope}graceful&skip_exit");
        let answer = Question::post(self.address, &path).send().await?;
        if answer.status.is_success() {
            return Ok(());
        }
        Err(HttpError::Protocol(format!("{path}: {}", answer.status)))
    }

    /// Returns how many connections listeners have, but for those of administration, status and metrics.
    pub async fn connections(&self, own_ports: &[u16]) -> Option<u64> {
        let answer = Question::get(self.address, CONNECTIONS).send().await.ok()?;
        Some(count(&String::from_utf8_lossy(&answer.body), own_ports))
    }
}

fn values(stats: &str) -> impl Iterator<Item = (&str, u64)> {
    stats.lines().filter_map(|line| {
        let (name, value) = line.split_once(": ")?;
        Some((name, value.trim().parse().ok()?))
    })
}

fn judge(stats: &str) -> Result<(), NotReady> {
    let (mut cds, mut lds, mut state) = (0, 0, None);
    for (name, value) in values(stats) {
        match name {
            "server.state" => state = Some(value),
            // What was refused was received: the rest of it is in use.
            "cluster_manager.cds.update_success" | "cluster_manager.cds.update_rejected" => cds += value,
            "listener_manager.lds.update_success" | "listener_manager.lds.update_rejected" => lds += value,
            _ => {}
        }
    }
    if cds == 0 || lds == 0 {
        return Err(NotReady::NoConfiguration { cds, lds });
    }
    match state {
        // `usedonly` leaves out a gauge that was never set; it is only ever 0 then.
        Some(0) | None => Ok(()),
        Some(1) => Err(NotReady::State("draining")),
        Some(2) => Err(NotReady::State("waiting before its initialisation")),
        Some(_) => Err(NotReady::State("initialising")),
    }
}

fn count(stats: &str, own_ports: &[u16]) -> u64 {
    let own: Vec<String> = own_ports.iter().map(|port| format!("_{port}.downstream_cx_active")).collect();
    let counted = values(stats).filter(|(name, _)| {
        // Workers have numbers of their own, which are part of the listener's.
        !name.starts_with("listener.admin.")
            && !name.contains(".worker_")
            && !own.iter().any(|suffix| name.ends_with(suffix.as_str()))
    });
    counted.map(|(_, value)| value).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_ready_when_it_has_clusters_and_listeners_and_lives() {
        let stats = |cds: u64, lds: u64, state: u64| {
            format!(
                "cluster_manager.cds.update_rejected: 0\ncluster_manager.cds.update_success: {cds}\n\
                 listener_manager.lds.update_rejected: {lds}\nserver.state: {state}\n"
            )
        };
        assert_eq!(judge(&stats(1, 1, 0)), Ok(()));
        assert_eq!(judge(&stats(1, 1, 1)), Err(NotReady::State("draining")));
        assert_eq!(judge(&stats(1, 1, 3)), Err(NotReady::State("initialising")));
        assert_eq!(judge(&stats(0, 1, 0)), Err(NotReady::NoConfiguration { cds: 0, lds: 1 }));
        assert_eq!(judge(&stats(1, 0, 0)), Err(NotReady::NoConfiguration { cds: 1, lds: 0 }));
        assert!(judge("").is_err());
    }

    #[test]
    fn only_connections_of_the_workload_count() {
        let stats = "listener.admin.downstream_cx_active: 1\nlistener.0.0.0.0_15021.downstream_cx_active: 2\n\
                     listener.0.0.0.0_15006.downstream_cx_active: 3\n\
                     listener.0.0.0.0_15006.worker_0.downstream_cx_active: 3\n\
                     listener.[__]_15090.downstream_cx_active: 4\nlistener.10.0.0.1_80.downstream_cx_active: 5\n";
        assert_eq!(count(stats, &[15021, 15090]), 8);
    }
}
