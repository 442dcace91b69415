//! The loop that keeps the workload's certificate valid.

use super::authority::{Client, RequestError};
use super::certificate::{Identity, IdentityError};
use super::key::{KeyError, NewKey};
use super::{files, output};
use crate::config::{CertificateFiles, CertificateSource, IdentitySettings};
use crate::metrics::Metrics;
use crate::store::Store;
use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use ca::{RenewalPolicy, TrustBundle, UnixTime};
use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

/// How often files are looked at. Directories that the kubelet swaps give no reliable notice.
pub const FILES_INTERVAL: Duration = Duration::from_secs(2);
/// The longest sleep: a machine that was suspended notices soon after that its certificate is over.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);

/// Why there is no new certificate.
#[derive(Debug, thiserror::Error)]
enum RenewError {
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("the authority's answer is of no use: {0}")]
    Answer(#[from] IdentityError),
    #[error("the key was not made: {0}")]
    Unfinished(#[from] tokio::task::JoinError),
}

/// Waits longer after each failure, up to half a minute, each time by a little more or less.
pub fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::new()
        .with_min_delay(Duration::from_millis(250))
        .with_max_delay(Duration::from_secs(30))
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .build()
}

/// Keeps the certificate valid, for ever.
pub async fn run(settings: IdentitySettings, client: Option<Client>, store: Arc<Store>, metrics: Metrics) {
    match (&settings.source, client) {
        (CertificateSource::Files(files), _) => follow_files(files, &store, &metrics).await,
        (CertificateSource::Authority { output, .. }, Some(client)) => {
            ask(&settings, &client, output.as_deref(), &store, &metrics).await;
        }
        (CertificateSource::Authority { .. }, None) => {
            tracing::error!("there is no client for the authority");
        }
    }
}

async fn ask(
    settings: &IdentitySettings,
    client: &Client,
    output: Option<&Path>,
    store: &Store,
    metrics: &Metrics,
) {
    let policy = RenewalPolicy::new(settings.grace_ratio, settings.grace_jitter);
    let mut delays = backoff();
    loop {
        metrics.requests.inc();
        match obtain(settings, client, store).await {
            Ok((identity, roots)) => {
                delays = backoff();
                let now = UnixTime::from(SystemTime::now());
                let renewal = policy.renew_at(identity.validity, now, fastrand::f64());
                // An authority that issues certificates which are over at once must not be asked in a loop.
                let renewal = renewal.max(now.after(Duration::from_secs(1)));
                tracing::info!(until = %identity.validity.not_after, %renewal, "the workload has a certificate");
                if let Some(directory) = output
                    && let Err(error) = output::write(directory, &identity, &roots)
                {
                    tracing::warn!(%error, directory = %directory.display(), "cannot write the certificate");
                }
                metrics.certificate(&identity, &roots);
                store.set_authority_roots(roots);
                store.set_identity(identity);
                sleep_until(renewal).await;
            }
            Err(error) => {
                metrics.failed_requests.inc();
                let wait = delays.next().unwrap_or(LONGEST_SLEEP);
                tracing::warn!(error = %chain(&error), ?wait, "the workload gets no certificate");
                tokio::time::sleep(wait).await;
            }
        }
    }
}

async fn obtain(
    settings: &IdentitySettings,
    client: &Client,
    store: &Store,
) -> Result<(Identity, TrustBundle), RenewError> {
    let (kind, id) = (settings.key, settings.spiffe_id.clone());
    // RSA keys take a while.
    let new = tokio::task::spawn_blocking(move || NewKey::generate(kind, &id)).await??;
    let NewKey { key, public, request } = new;
    let answer = client.request(&request, settings.ttl, store).await?;
    Ok(Identity::issued(answer, key, &public, SystemTime::now().into())?)
}

/// Sleeps until the clock says so, even if it is set or the machine sleeps meanwhile.
async fn sleep_until(moment: UnixTime) {
    loop {
        let left = moment.since(SystemTime::now().into());
        if left.is_zero() {
            return;
        }
        tokio::time::sleep(left.min(LONGEST_SLEEP)).await;
    }
}

async fn follow_files(files: &CertificateFiles, store: &Store, metrics: &Metrics) {
    let mut last_error = String::new();
    loop {
        match files::read(files, SystemTime::now().into()) {
            Ok((identity, roots)) => {
                last_error.clear();
                let current = store.identity();
                if current.is_none_or(|current| current.chain != identity.chain) {
                    tracing::info!(until = %identity.validity.not_after, "the workload has a certificate");
                    metrics.certificate(&identity, &roots);
                    store.set_identity(identity);
                }
                store.set_authority_roots(roots);
            }
            Err(error) => {
                let error = chain(&error);
                if error != last_error {
                    tracing::warn!(%error, "the workload's certificate is not read");
                    last_error = error;
                }
            }
        }
        tokio::time::sleep(FILES_INTERVAL).await;
    }
}

/// Returns an error with what caused it, in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_are_retried_ever_more_slowly() {
        let delays: Vec<Duration> = backoff().take(12).collect();
        assert!(delays[0] >= Duration::from_millis(250) && delays[0] < Duration::from_secs(1));
        assert!(delays[11] >= Duration::from_secs(30) && delays[11] <= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn a_moment_that_is_over_is_not_waited_for() {
        sleep_until(UnixTime::from_seconds(0)).await;
    }
}
