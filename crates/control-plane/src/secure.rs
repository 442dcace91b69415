//! The port that anybody may reach: TLS, authentication, certificates.
//!
//! ```text
//! directory or Secret ─▶ Keeper ══ Held ══▶ ┬▶ keep_tls ═▶ ServerTls ─▶ serve
//!                          ▲ rotation        ├▶ CertificateService ─▶ Gate ──┘
//!                          │                 └▶ Secrets ─▶ streams    ▲
//!                        Proxies ◀── what is issued, what streams acknowledge
//! API server or file ──▶ tokens, index ─────────────▶ authenticators ─┘
//! ```

mod authority;
mod cluster;
mod files;
mod own;
mod permissions;
mod presenter;
mod proxies;
mod refusals;
mod replicas;
mod rotation;
mod store;
mod stream;

pub(crate) use own::OwnIdentity;
pub(crate) use stream::{SecretObserver, Secrets, Served, without_secrets};

use crate::admin::Doorkeepers;
use crate::args::{Args, SecureArgs};
use crate::writer::WriterState;
use anyhow::{Context as _, Result};
use authority::{Held, Keeper};
use ca::{Authority, Policy};
use files::KeyFile;
use identity::{
    Authenticator, CertificateAuthenticator, CertificateService, Clock, Gate, GateConfig, Identity,
    KeySource, Metrics, Nobody, Purpose, ServerTls, SigningPool, TokenAuthenticator, TokenConfig,
    TokenReviewer, Trust, TrustDomains, WorkloadIndex, WorkloadKeys,
};
use model::TrustDomain;
use permissions::Permissions;
use presenter::{Pace, Presenter};
use prometheus_client::registry::Registry;
use proxies::Proxies;
use replicas::Replicas;
use rustls::pki_types::ServerName;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
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

/// What the webhooks' port presents.
pub(crate) struct Presenting {
    /// Its certificate; nothing until there is an authority.
    pub(crate) certificates: watch::Receiver<Option<Arc<rustls::ServerConfig>>>,
    /// The roots that it comes from, as PEM, for the webhooks' configurations.
    pub(crate) bundle: watch::Receiver<Option<Arc<str>>>,
    /// The roots of the mesh, as PEM, for pods.
    pub(crate) roots: watch::Receiver<Option<Arc<str>>>,
}

/// A secure port that is not served yet.
pub(crate) struct Secure {
    listener: TcpListener,
    args: SecureArgs,
    /// Keys of tokens that take the place of the cluster's.
    token_keys: Option<KeyFile>,
    config: serve::Config,
    world: World,
    names: Vec<ServerName<'static>>,
    metrics: Metrics,
    clock: Clock,
    state: watch::Receiver<WriterState>,
    /// Where the authority is put.
    holder: watch::Sender<Option<Held>>,
    authorities: watch::Receiver<Option<Authority>>,
    progress: watch::Sender<String>,
    /// Whether the port is served.
    served: watch::Sender<bool>,
    /// Those who know tokens.
    doorkeepers: watch::Sender<Vec<Arc<dyn Authenticator>>>,
    pool: SigningPool,
    secrets: Secrets,
    tasks: JoinSet<()>,
}

impl Secure {
    /// Takes the port. Returns nothing if there is no authority: without a cluster one has to be named.
    pub(crate) async fn prepare(
        args: &Args,
        registry: &mut Registry,
        state: watch::Receiver<WriterState>,
    ) -> Result<Option<Self>> {
        let has_cluster = args.source.config.is_none();
        let token_keys = match (&args.secure.token_keys, &args.secure.token_issuer) {
            (Some(path), Some(issuer)) => {
                Some(KeyFile::new(path.clone(), issuer.clone()).await.context("--token-keys")?)
            }
            _ => None,
        };
        if !has_cluster && args.secure.ca_dir.is_none() {
            info!("no certificates and no encrypted xDS: without a cluster these need --ca-dir");
            return Ok(None);
        }
        let world = if has_cluster {
            let kubeconfig = args.source.kubeconfig.clone();
            let config = controllers::Config::questions(kubeconfig, &args.source.namespace);
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
        let (metrics, clock) = (Metrics::register(registry), identity::system_clock());
        let (holder, held) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let authorities = authorities(held.clone(), &mut tasks);
        let pool = SigningPool::for_this_machine();
        let keys = WorkloadKeys::new(authorities.clone(), pool.clone(), clock.clone(), metrics.clone());
        let secrets = Secrets {
            held,
            keys,
            index: world.index(state.clone(), &mut tasks),
            permissions: world.permissions(),
            proxies: Arc::new(Proxies::new(clock.clone())),
            clock: clock.clone(),
            metrics: metrics.clone(),
        };
        Ok(Some(Self {
            listener,
            args: args.secure.clone(),
            token_keys,
            config,
            names: names(&args.source.namespace, &args.mesh.revision, &args.secure.secure_name, has_cluster)?,
            world,
            metrics,
            clock,
            state,
            holder,
            authorities,
            progress: watch::channel(String::new()).0,
            served: watch::channel(false).0,
            doorkeepers: watch::channel(Vec::new()).0,
            pool,
            secrets,
            tasks,
        }))
    }

    /// Returns what secrets on streams are made of.
    pub(crate) fn secrets(&self) -> Secrets {
        self.secrets.clone()
    }

    /// Returns who weftd is towards its replicas.
    pub(crate) fn own_identity(&self, namespace: &str, account: &str) -> OwnIdentity {
        OwnIdentity {
            held: self.holder.subscribe(),
            clock: self.clock.clone(),
            namespace: namespace.into(),
            account: account.to_owned(),
            made: Arc::default(),
        }
    }

    /// Returns the name that clients know this port by, and replicas each other.
    pub(crate) fn name(&self) -> Option<ServerName<'static>> {
        self.names.first().cloned()
    }

    /// Returns how far the replacement of a root is, for people.
    pub(crate) fn progress(&self) -> watch::Receiver<String> {
        self.progress.subscribe()
    }

    /// Returns whether the port is served.
    pub(crate) fn served(&self) -> watch::Receiver<bool> {
        self.served.subscribe()
    }

    /// Returns those who know tokens, as soon as there are any.
    pub(crate) fn doorkeepers(&self) -> Doorkeepers {
        self.doorkeepers.subscribe()
    }

    /// Keeps a certificate for the webhooks' port. `bundles` is what their configurations have.
    pub(crate) fn present(&mut self, bundles: watch::Receiver<controllers::Bundles>) -> Presenting {
        let (tls, certificates) = watch::channel(None);
        let (wanted, bundle) = watch::channel(None);
        let (published, roots) = watch::channel(None);
        let presenter = Presenter {
            held: self.holder.subscribe(),
            names: self.names.clone(),
            clock: self.clock.clone(),
            pace: Pace::STANDARD,
            bundles,
            wanted,
            roots: published,
            tls,
        };
        self.tasks.spawn(presenter.keep());
        Presenting { certificates, bundle, roots }
    }

    /// Serves `routes` and the certificate service until `stopping`, as soon as there is an authority.
    pub(crate) async fn serve(
        mut self,
        routes: Routes,
        connections: serve::Metrics,
        stopping: CancellationToken,
    ) -> Result<()> {
        let mut tasks = std::mem::take(&mut self.tasks);
        let (tls, gate) = tokio::select! {
            ready = self.get_ready(routes, stopping.clone(), &mut tasks) => ready?,
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
        stopping: CancellationToken,
        tasks: &mut JoinSet<()>,
    ) -> Result<(ServerTls, Gate<Routes>)> {
        let domains = trust_domains(&mut self.state.clone()).await?;
        self.hold_authority(&domains.own, stopping, tasks);
        let mut held = self.holder.subscribe();
        let first = held.wait_for(Option::is_some).await.context("the authority is gone")?.clone();
        let held_first = first.context("there is an authority: waited for above")?;
        // Those who sign hear of it a moment later.
        let mut authorities = self.authorities.clone();
        authorities.wait_for(Option::is_some).await.context("the authority is gone")?;
        let tls = self.first_tls(&held_first)?;
        tasks.spawn(keep_tls(tls.clone(), self.names.clone(), held, self.clock.clone()));
        let gate = self.gate(routes, &domains, &tls);
        info!(
            address = %self.listener.local_addr()?, trust_domain = %domains.own,
            "encrypted xDS and certificates are served",
        );
        self.served.send_replace(true);
        Ok((tls, gate))
    }

    fn hold_authority(&self, domain: &TrustDomain, stopping: CancellationToken, tasks: &mut JoinSet<()>) {
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
        let replicas = match &store {
            Store::Secret { client, namespace } => Some(Replicas {
                client: client.clone(),
                namespace: namespace.clone(),
                name: self.args.replica_name(),
            }),
            Store::Directory(_) | Store::Nowhere => None,
        };
        let keeper = Keeper {
            store,
            policy,
            clock: self.clock.clone(),
            metrics: self.metrics.clone(),
            proxies: self.secrets.proxies.clone(),
            replicas,
            stopping,
            held: self.holder.clone(),
            progress: self.progress.clone(),
        };
        tasks.spawn(keeper.keep());
    }

    fn first_tls(&self, held: &Held) -> Result<ServerTls> {
        let identity = Identity::issue(&held.authority, &self.names, None, (self.clock)())
            .context("cannot make a certificate for the secure port")?;
        ServerTls::new(&identity, trust(held)?).context("cannot set up the secure port")
    }

    fn gate(&self, routes: Routes, domains: &TrustDomains, tls: &ServerTls) -> Gate<Routes> {
        let index = self.secrets.index.clone();
        let by_certificate = |purpose| -> Arc<dyn Authenticator> {
            let (trust, clock) = (tls.trust.clone(), self.clock.clone());
            Arc::new(CertificateAuthenticator::new(trust, domains.clone(), purpose, clock))
        };
        let mut proved = vec![by_certificate(Purpose::Identity)];
        let mut fresh = vec![by_certificate(Purpose::Renewal(index.clone()))];
        if let Some(tokens) = self.tokens(domains, index) {
            // A certificate is checked at once, and a token may have to be asked about.
            proved.push(tokens.clone());
            self.doorkeepers.send_replace(vec![tokens.clone()]);
            // Where both count, a token says more: it ends with its pod.
            fresh.insert(0, tokens);
        }
        let service = CertificateService::new(
            self.authorities.clone(),
            Arc::new(Nobody),
            self.pool.clone(),
            self.clock.clone(),
            self.metrics.clone(),
        );
        let service = service.recorded_by(self.secrets.proxies.clone());
        let routes = routes.add_service(service.into_server());
        Gate::new(routes, GateConfig { proved, fresh }, self.metrics.clone())
    }

    fn tokens(
        &self,
        domains: &TrustDomains,
        index: Arc<dyn WorkloadIndex>,
    ) -> Option<Arc<dyn Authenticator>> {
        let keys: Arc<dyn KeySource>;
        let mut reviewer: Option<Arc<dyn TokenReviewer>> = None;
        match (self.token_keys.clone(), &self.world) {
            // Whoever names keys does not mean those of the cluster.
            (Some(file), _) => keys = Arc::new(file),
            (None, World::Files) => {
                info!("no tokens are taken: --token-keys and --token-issuer say whose would be");
                return None;
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
        Some(Arc::new(TokenAuthenticator::new(config, self.metrics.clone())))
    }
}

impl World {
    fn index(&self, state: watch::Receiver<WriterState>, tasks: &mut JoinSet<()>) -> Arc<dyn WorkloadIndex> {
        match self {
            Self::Files => Arc::new(files::Everything { state }),
            Self::Cluster { client, .. } => {
                let accounts = controllers::ServiceAccounts::default();
                tasks.spawn(accounts.clone().follow(client.clone()));
                Arc::new(cluster::ClusterIndex { state, accounts })
            }
        }
    }

    fn permissions(&self) -> Permissions {
        match self {
            Self::Files => Permissions::Everybody,
            Self::Cluster { client, .. } => Permissions::ask(client.clone()),
        }
    }
}

/// Returns the authority alone: those who sign have no use for what else is held.
fn authorities(
    mut held: watch::Receiver<Option<Held>>,
    tasks: &mut JoinSet<()>,
) -> watch::Receiver<Option<Authority>> {
    let (sender, authorities) = watch::channel(None);
    tasks.spawn(async move {
        loop {
            sender.send_replace(held.borrow_and_update().as_ref().map(|held| held.authority.clone()));
            if held.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    });
    authorities
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
fn names(
    namespace: &str,
    revision: &str,
    more: &[String],
    has_cluster: bool,
) -> Result<Vec<ServerName<'static>>> {
    let own = Some(format!("istiod-{revision}")).filter(|_| revision != "default");
    let services = ["istiod", "istiod-remote", "istio-pilot"].map(str::to_owned).into_iter().chain(own);
    let mut names: Vec<String> = services.map(|service| format!("{service}.{namespace}.svc")).collect();
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
        let all =
            names("mesh", "canary", &["mesh.example.com".to_owned(), "10.0.0.1".to_owned()], true).unwrap();
        let all: Vec<String> = all.iter().map(|name| name.to_str().into_owned()).collect();
        assert_eq!(
            all,
            [
                "istiod.mesh.svc",
                "istiod-remote.mesh.svc",
                "istio-pilot.mesh.svc",
                "istiod-canary.mesh.svc",
                "mesh.example.com",
                "10.0.0.1"
            ]
        );
        assert!(names("mesh", "default", &["no name".to_owned()], true).is_err());
    }
}
