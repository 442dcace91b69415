//! The port that anybody may reach: TLS, authentication, certificates.
//!
//! ```text
//! directory or Secret ─▶ authority::keep ══▶ Authority ─┬▶ keep_tls ═▶ ServerTls ─▶ serve
//!                                                       └▶ CertificateService ─▶ Gate ──┘
//! API server or file ──▶ tokens, index ─────────────────▶ authenticators ─────────┘
//! ```

mod authority;
mod cluster;
mod files;

pub(crate) use cluster::SecretReaders;

use crate::args::{Args, SecureArgs};
use crate::writer::WriterState;
use anyhow::{Context as _, Result};
use authority::{Held, Store};
use ca::Policy;
use identity::{
    Authenticator, CertificateAuthenticator, CertificateService, Clock, Gate, GateConfig, Identity,
    KeySource, Metrics, Nobody, Purpose, ServerTls, SigningPool, TokenAuthenticator, TokenConfig,
    TokenReviewer, Trust, TrustDomains, WorkloadIndex,
};
use model::TrustDomain;
use prometheus_client::registry::Registry;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tracing::{error, info, warn};

/// How long to wait after a failure that only time or somebody else can cure.
const RETRY: Duration = Duration::from_secs(10);

/// Where callers and certificates are known from.
#[derive(Clone)]
enum World {
    /// A directory of manifests: nobody to ask.
    Files,
    /// A cluster. The client is for this alone, so that nobody waits behind lists.
    Cluster { client: controllers::Client, namespace: String },
}

/// A secure port that is not served yet.
pub(crate) struct Secure {
    listener: TcpListener,
    args: SecureArgs,
    config: serve::Config,
    world: World,
    names: Vec<ServerName<'static>>,
    metrics: Metrics,
    clock: Clock,
}

impl Secure {
    /// Takes the port. Returns nothing if there is no authority: without a cluster one has to be named.
    pub(crate) async fn prepare(args: &Args, registry: &mut Registry) -> Result<Option<Self>> {
        let has_cluster = args.source.config.is_none();
        if !has_cluster && args.secure.ca_dir.is_none() {
            info!("no certificates and no encrypted xDS: without a cluster these need --ca-dir");
            return Ok(None);
        }
        let world = if has_cluster {
            let config = controllers::Config {
                kubeconfig: args.source.kubeconfig.clone(),
                namespace: args.source.namespace.clone(),
                base_mesh_config: serde_json::Value::Null,
            };
            let client = controllers::connect(&config).await?;
            World::Cluster { client, namespace: args.source.namespace.clone() }
        } else {
            World::Files
        };
        let address = args.secure.secure_grpc_addr;
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address} (--secure-grpc-addr)"))?;
        let limits = serve::Limits::standard(args.server.max_connections);
        let config = serve::Config {
            max_age: Some(args.secure.max_connection_age),
            drain_grace: args.server.shutdown_duration,
            ..serve::Config::standard("tls", limits)
        };
        Ok(Some(Self {
            listener,
            args: args.secure.clone(),
            config,
            names: names(&args.source.namespace, &args.secure.secure_name, has_cluster)?,
            world,
            metrics: Metrics::register(registry),
            clock: identity::system_clock(),
        }))
    }

    /// Returns who may have the Secrets of their namespace.
    pub(crate) fn secret_readers(&self) -> SecretReaders {
        match &self.world {
            World::Files => SecretReaders::Everybody,
            World::Cluster { client, .. } => SecretReaders::Ask(client.clone()),
        }
    }

    /// Serves `routes` and the certificate service until `stopping`, as soon as there is an authority.
    pub(crate) async fn serve(
        self,
        routes: Routes,
        state: watch::Receiver<WriterState>,
        connections: serve::Metrics,
        stopping: CancellationToken,
    ) -> Result<()> {
        let mut tasks = JoinSet::new();
        let (tls, gate) = tokio::select! {
            ready = self.get_ready(routes, state, &mut tasks) => ready?,
            () = stopping.cancelled() => return Ok(()),
        };
        let Self { listener, config, .. } = self;
        let transport = serve::Transport::Tls(tls.config);
        let stopped = stopping.cancelled_owned();
        tokio::select! {
            () = serve::serve(listener, transport, gate, config, &connections, stopped) => Ok(()),
            Some(ended) = tasks.join_next() => ended.context("a task of the secure port panicked"),
        }
    }

    async fn get_ready(
        &self,
        routes: Routes,
        mut state: watch::Receiver<WriterState>,
        tasks: &mut JoinSet<()>,
    ) -> Result<(ServerTls, Gate<Routes>)> {
        let domains = trust_domains(&mut state).await?;
        let mut held = self.hold_authority(&domains.own, tasks);
        let first = held.wait_for(Option::is_some).await.context("the authority is gone")?.clone();
        let held_first = first.context("there is an authority: waited for above")?;
        let tls = self.first_tls(&held_first)?;
        tasks.spawn(keep_tls(tls.clone(), self.names.clone(), held.clone(), self.clock.clone()));
        let index = self.index(state, tasks);
        let gate = self.gate(routes, &held, &domains, &tls, index, tasks)?;
        info!(
            address = %self.listener.local_addr()?, trust_domain = %domains.own,
            "encrypted xDS and certificates are served",
        );
        Ok((tls, gate))
    }

    fn hold_authority(&self, domain: &TrustDomain, tasks: &mut JoinSet<()>) -> watch::Receiver<Option<Held>> {
        let policy = Policy {
            trust_domain: domain.clone(),
            default_ttl: self.args.workload_cert_ttl,
            max_ttl: self.args.max_workload_cert_ttl,
        };
        let store = match (&self.args.ca_dir, &self.world) {
            (Some(directory), _) => Store::Directory(directory.clone()),
            (None, World::Cluster { client, namespace }) => {
                Store::Secret { client: client.clone(), namespace: namespace.clone() }
            }
            // Not without a directory: `prepare` has seen to that.
            (None, World::Files) => Store::Nowhere,
        };
        let (sender, held) = watch::channel(None);
        let (clock, metrics) = (self.clock.clone(), self.metrics.clone());
        tasks.spawn(async move { authority::keep(store, policy, clock, metrics, sender).await });
        held
    }

    fn first_tls(&self, held: &Held) -> Result<ServerTls> {
        let identity = Identity::issue(&held.authority, &self.names, None, (self.clock)())
            .context("cannot make a certificate for the secure port")?;
        ServerTls::new(&identity, trust(held)?).context("cannot set up the secure port")
    }

    fn index(&self, state: watch::Receiver<WriterState>, tasks: &mut JoinSet<()>) -> Arc<dyn WorkloadIndex> {
        match &self.world {
            World::Files => Arc::new(files::Everything { state }),
            World::Cluster { client, .. } => {
                let accounts = controllers::ServiceAccounts::default();
                tasks.spawn(accounts.clone().follow(client.clone()));
                Arc::new(cluster::ClusterIndex { state, accounts })
            }
        }
    }

    fn gate(
        &self,
        routes: Routes,
        held: &watch::Receiver<Option<Held>>,
        domains: &TrustDomains,
        tls: &ServerTls,
        index: Arc<dyn WorkloadIndex>,
        tasks: &mut JoinSet<()>,
    ) -> Result<Gate<Routes>> {
        let by_certificate = |purpose| -> Arc<dyn Authenticator> {
            let (trust, clock) = (tls.trust.clone(), self.clock.clone());
            Arc::new(CertificateAuthenticator::new(trust, domains.clone(), purpose, clock))
        };
        let mut proved = vec![by_certificate(Purpose::Identity)];
        let mut fresh = vec![by_certificate(Purpose::Renewal(index.clone()))];
        if let Some(tokens) = self.tokens(domains, index)? {
            // A certificate is checked at once, and a token may have to be asked about.
            proved.push(tokens.clone());
            // Where both count, a token says more: it ends with its pod.
            fresh.insert(0, tokens);
        }
        let (sender, authorities) = watch::channel(None);
        let mut held = held.clone();
        tasks.spawn(async move {
            // The authority alone: the certificate service has no use for what else is held.
            loop {
                sender.send_replace(held.borrow_and_update().as_ref().map(|held| held.authority.clone()));
                if held.changed().await.is_err() {
                    return std::future::pending().await;
                }
            }
        });
        let service = CertificateService::new(
            authorities,
            Arc::new(Nobody),
            SigningPool::for_this_machine(),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let routes = routes.add_service(service.into_server());
        Ok(Gate::new(routes, GateConfig { proved, fresh }, self.metrics.clone()))
    }

    fn tokens(
        &self,
        domains: &TrustDomains,
        index: Arc<dyn WorkloadIndex>,
    ) -> Result<Option<Arc<dyn Authenticator>>> {
        let file = match (&self.args.token_keys, &self.args.token_issuer) {
            (Some(path), Some(issuer)) => {
                Some(files::KeyFile::new(path.clone(), issuer.clone()).context("--token-keys")?)
            }
            _ => None,
        };
        let keys: Arc<dyn KeySource>;
        let mut reviewer: Option<Arc<dyn TokenReviewer>> = None;
        match (file, &self.world) {
            // Whoever names keys does not mean those of the cluster.
            (Some(file), _) => keys = Arc::new(file),
            (None, World::Files) => {
                info!("no tokens are taken: --token-keys and --token-issuer say whose would be");
                return Ok(None);
            }
            (None, World::Cluster { client, .. }) => {
                keys = Arc::new(cluster::ClusterKeys(client.clone()));
                reviewer = Some(Arc::new(cluster::Reviewer(client.clone())));
            }
        }
        let config = TokenConfig {
            trust_domain: domains.own.clone(),
            audiences: self.args.token_audience.clone(),
            keys: Some(keys),
            reviewer,
            index,
            clock: self.clock.clone(),
        };
        Ok(Some(Arc::new(TokenAuthenticator::new(config, self.metrics.clone()))))
    }
}

/// Waits until the mesh is known, and returns the trust domain that its configuration names.
async fn trust_domains(state: &mut watch::Receiver<WriterState>) -> Result<TrustDomains> {
    loop {
        let view = state.wait_for(WriterState::is_ready).await.context("the mesh is gone")?.view.clone();
        let config = view.config();
        match TrustDomain::parse(&config.trust_domain) {
            Ok(own) => {
                let mut aliases = Vec::new();
                for alias in &config.trust_domain_aliases {
                    match TrustDomain::parse(alias) {
                        Ok(alias) => aliases.push(alias),
                        Err(error) => warn!(%error, "trustDomainAliases: an alias is passed over"),
                    }
                }
                return Ok(TrustDomains { own, aliases });
            }
            Err(error) => {
                error!(%error, "trustDomain of the mesh configuration: no certificates and no encrypted xDS");
            }
        }
        state.changed().await.context("the mesh is gone")?;
    }
}

fn trust(held: &Held) -> Result<Trust, identity::TlsError> {
    let roots = held.authority.bundle().iter().map(|root| root.der().clone());
    Trust::new(roots, held.revocations.to_vec())
}

/// Renews the certificate of the port when half of its life is over, and follows the authority.
async fn keep_tls(
    tls: ServerTls,
    names: Vec<ServerName<'static>>,
    mut held: watch::Receiver<Option<Held>>,
    clock: Clock,
) {
    loop {
        let current = held.borrow_and_update().clone();
        let replaced = current.as_ref().map(|held| -> Result<_, identity::TlsError> {
            let identity = Identity::issue(&held.authority, &names, None, clock())?;
            tls.replace(&identity, trust(held)?)?;
            Ok(identity.renew_at())
        });
        let pause = match replaced {
            Some(Ok(renew_at)) => renew_at.duration_since(clock()).unwrap_or_default().max(RETRY),
            Some(Err(error)) => {
                error!(%error, "cannot renew the certificate of the secure port; the one before stays in use");
                RETRY
            }
            None => RETRY,
        };
        // In steps, since the clock of the system may jump and this one does not.
        let pause = pause.min(Duration::from_secs(3600));
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = held.changed() => if changed.is_err() {
                // Only when weftd ends.
                return std::future::pending().await;
            },
        }
    }
}

/// Returns the names that clients may know the port by: Istio's, and those of the operator.
fn names(namespace: &str, more: &[String], has_cluster: bool) -> Result<Vec<ServerName<'static>>> {
    let services = ["istiod", "istiod-remote", "istio-pilot"];
    let mut names: Vec<String> =
        services.iter().map(|service| format!("{service}.{namespace}.svc")).collect();
    if !has_cluster {
        names.extend(["localhost", "127.0.0.1", "::1"].map(str::to_owned));
    }
    names.extend(more.iter().cloned());
    let parse = |name: String| {
        ServerName::try_from(name.clone())
            .with_context(|| format!("{name:?} is neither a DNS name nor an address"))
    };
    names.into_iter().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_has_istios_names() {
        let all = names("mesh", &["mesh.example.com".to_owned(), "10.0.0.1".to_owned()], true).unwrap();
        let all: Vec<String> = all.iter().map(|name| name.to_str().into_owned()).collect();
        assert_eq!(
            all,
            [
                "istiod.mesh.svc",
                "istiod-remote.mesh.svc",
                "istio-pilot.mesh.svc",
                "mesh.example.com",
                "10.0.0.1"
            ]
        );
        assert!(names("mesh", &["no name".to_owned()], true).is_err());
    }
}
