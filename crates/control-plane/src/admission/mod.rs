//! The webhooks: what they know, and the port that they are served on.
//!
//! ```text
//! writer ══ Facts ════════════════════╗
//! ConfigMap, mesh configuration ─▶ settings ══ Current ══▶ Known ─▶ webhook::router ─▶ webhook::serve
//! ProxyConfigs ───────────────────────╝                                                    ▲
//! Held ─▶ presenter ══ roots ══▶ writers ─▶ caBundle, istio-ca-root-cert
//! secure ══ a certificate of weftd's own authority ════════════════════════════════════════╝
//! ```

mod facts;
mod settings;
mod writers;

pub(crate) use facts::Facts;
pub(crate) use settings::Current;
pub(crate) use writers::{Writing, identity, write};

use crate::args::Args;
use crate::sources::revisioned;
use crate::writer::WriterState;
use anyhow::{Context as _, Result, bail};
use axum::Router;
use axum::routing::get;
use controllers::{ConfigMapData, ProxyConfigs};
use k8s_api::mesh_config::MeshConfig;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use serde_json::Value;
use settings::Fixed;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use webhook::{Knowledge, Limits};

/// How long the webhooks are served after a signal to stop: so long an API server may not have heard of it yet.
const LINGER: Duration = Duration::from_secs(5);

/// What the webhooks know.
struct Known {
    facts: watch::Receiver<Arc<Facts>>,
    /// The first settings.
    current: Current,
    settings: watch::Receiver<Option<Current>>,
    proxy_configs: ProxyConfigs,
    allows_unenforced: bool,
}

impl Known {
    fn current(&self) -> Current {
        // There is always one, once there was one.
        self.settings.borrow().clone().unwrap_or_else(|| self.current.clone())
    }
}

impl Knowledge for Known {
    fn injection(&self) -> Arc<inject::Settings> {
        self.current().injection
    }

    fn context(&self) -> Arc<translate::Context> {
        self.current().context
    }

    fn namespace_annotations(&self, namespace: &str) -> BTreeMap<String, String> {
        let facts = self.facts.borrow();
        facts.namespace(namespace).map(|namespace| namespace.annotations.clone()).unwrap_or_default()
    }

    fn kubelets(&self, node: Option<&str>) -> Vec<String> {
        self.facts.borrow().kubelets(node)
    }

    fn proxy_config(&self, namespace: &str, labels: &BTreeMap<String, String>) -> Vec<Value> {
        let root = self.context().root_namespace.clone();
        let revisions = self.facts.borrow().revisions();
        self.proxy_configs.layers(&revisions, root.as_str(), namespace, labels)
    }

    fn allows_unenforced_policies(&self) -> bool {
        self.allows_unenforced
    }
}

/// The port of the webhooks, and what they are answered with.
pub(crate) struct Admission {
    listener: TcpListener,
    known: Unsettled,
    state: watch::Receiver<WriterState>,
    certificates: watch::Receiver<Option<Arc<ServerConfig>>>,
    metrics: webhook::Metrics,
    /// How long it may go on after it is told to stop.
    grace: Duration,
    /// Whether it answers.
    served: watch::Sender<bool>,
}

/// What the webhooks will know once there are settings.
struct Unsettled {
    facts: watch::Receiver<Arc<Facts>>,
    settings: watch::Receiver<Option<Current>>,
    proxy_configs: ProxyConfigs,
    allows_unenforced: bool,
}

/// What admission rests on.
pub(crate) struct Ground {
    /// What is known of the cluster.
    pub(crate) facts: watch::Receiver<Arc<Facts>>,
    /// The mesh configuration in use; nothing while it is the default.
    pub(crate) mesh: watch::Receiver<Option<Arc<MeshConfig>>>,
    /// Whether the mesh is known.
    pub(crate) state: watch::Receiver<WriterState>,
    /// What the port presents.
    pub(crate) certificates: watch::Receiver<Option<Arc<ServerConfig>>>,
    /// The API server; nothing without a cluster.
    pub(crate) client: Option<controllers::Client>,
}

impl Admission {
    /// Takes the port, and follows what answers rest on.
    pub(crate) async fn prepare(
        args: &Args,
        ground: Ground,
        registry: &mut Registry,
        tasks: &mut JoinSet<Result<()>>,
    ) -> Result<Self> {
        let address = args.admission.https_addr;
        let listener = TcpListener::bind(address).await;
        let listener = listener.with_context(|| format!("cannot listen on {address} (--https-addr)"))?;
        let values = args.admission.injection_values.as_deref().map(settings::read_values).transpose()?;
        let fixed = Fixed {
            values: values.unwrap_or_default(),
            revision: args.mesh.revision.clone(),
            namespace: args.source.namespace.clone(),
            domain: args.mesh.domain.as_str().into(),
            cluster: args.mesh.cluster_id.as_str().into(),
            native_sidecars: args.admission.native_sidecars,
        };
        let proxy_configs = ProxyConfigs::default();
        let (sender, settings) = watch::channel(None);
        let (data_sender, data) = watch::channel(None);
        if let Some(client) = ground.client {
            tasks.spawn(forever(proxy_configs.clone().follow(client.clone())));
            let (namespace, name) =
                (args.source.namespace.clone(), revisioned("istio-sidecar-injector", &args.mesh.revision));
            tasks.spawn(forever(async move {
                controllers::follow_config_map(client, &namespace, &name, data_sender).await;
            }));
        } else {
            data_sender.send_replace(Some(ConfigMapData::new()));
            tasks.spawn(forever(async move { data_sender.closed().await }));
        }
        tasks.spawn(forever(settings::follow(fixed, data, ground.mesh, sender)));
        let known = Unsettled {
            facts: ground.facts,
            settings,
            proxy_configs,
            allows_unenforced: args.source.allow_unenforced_policies,
        };
        Ok(Self {
            listener,
            known,
            state: ground.state,
            certificates: ground.certificates,
            metrics: webhook::Metrics::register(registry),
            grace: args.server.shutdown_duration,
            served: watch::channel(false).0,
        })
    }

    /// Knows nothing but defaults.
    #[cfg(test)]
    pub(crate) fn of_nothing(
        listener: TcpListener,
        certificates: watch::Receiver<Option<Arc<ServerConfig>>>,
    ) -> Self {
        let context = translate::Context::new(&model::MeshConfig::default(), "Kubernetes");
        let current = Current { injection: Arc::default(), context: Arc::new(context) };
        let known = Unsettled {
            facts: watch::channel(Arc::default()).1,
            settings: watch::channel(Some(current)).1,
            proxy_configs: ProxyConfigs::default(),
            allows_unenforced: false,
        };
        let state = watch::channel(WriterState::default()).1;
        let metrics = webhook::Metrics::default();
        let served = watch::channel(false).0;
        Self { listener, known, state, certificates, metrics, grace: Duration::ZERO, served }
    }

    /// Returns whether the port answers.
    pub(crate) fn served(&self) -> watch::Receiver<bool> {
        self.served.subscribe()
    }

    /// Returns the settings that are in use.
    pub(crate) fn settings(&self) -> watch::Receiver<Option<Current>> {
        self.known.settings.clone()
    }

    /// Serves until a while after `stopping`, as soon as everything is known that answers rest on.
    pub(crate) async fn serve(self, stopping: CancellationToken) -> Result<()> {
        let Self { listener, known, mut state, mut certificates, metrics, grace, served } = self;
        let (known, first) = tokio::select! {
            ready = known.settle(&mut state, &mut certificates) => ready?,
            () = stopping.cancelled() => return Ok(()),
        };
        let routes = webhook::router(Arc::new(known), metrics).merge(ready_route());
        info!(address = %listener.local_addr()?, "webhooks are served");
        served.send_replace(true);
        let (sender, tls) = watch::channel(first);
        let stop = CancellationToken::new();
        let ends = async {
            stopping.cancelled().await;
            tokio::time::sleep(grace.min(LINGER)).await;
            stop.cancel();
        };
        let serves = webhook::serve(listener, tls, routes, Limits::default(), stop.clone());
        tokio::select! {
            ((), ()) = async { tokio::join!(serves, ends) } => Ok(()),
            () = renew(certificates, sender) => bail!("the certificates of the webhooks have ended"),
        }
    }
}

impl Unsettled {
    /// Waits until everything is known.
    async fn settle(
        self,
        state: &mut watch::Receiver<WriterState>,
        certificates: &mut watch::Receiver<Option<Arc<ServerConfig>>>,
    ) -> Result<(Known, Arc<ServerConfig>)> {
        let Self { facts, mut settings, proxy_configs, allows_unenforced } = self;
        state.wait_for(WriterState::is_ready).await.context("the mesh is gone")?;
        let current = settings.wait_for(Option::is_some).await.context("the settings are gone")?.clone();
        let current = current.context("there are settings: waited for above")?;
        let tls = certificates.wait_for(Option::is_some).await.context("the certificates are gone")?.clone();
        let tls = tls.context("there is a certificate: waited for above")?;
        Ok((Known { facts, current, settings, proxy_configs, allows_unenforced }, tls))
    }
}

/// What follows something ends only with weftd.
async fn forever(task: impl Future<Output = ()>) -> Result<()> {
    task.await;
    bail!("what webhooks are answered with is not followed any more")
}

async fn renew(
    mut certificates: watch::Receiver<Option<Arc<ServerConfig>>>,
    tls: watch::Sender<Arc<ServerConfig>>,
) {
    while certificates.changed().await.is_ok() {
        let newest = certificates.borrow_and_update().clone();
        if let Some(newest) = newest {
            tls.send_replace(newest);
        }
    }
}

/// Whoever asks here is answered by a server that is ready.
fn ready_route() -> Router {
    Router::new().route("/ready", get(|| async { "ready\n" }))
}
