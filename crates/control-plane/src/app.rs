//! Wiring, start and stop.

use crate::admin::{self, AdminState};
use crate::admission::{self, Admission, Ground, Writing};
use crate::args::{Args, LogArgs, LogFormat, Writes};
use crate::mesh_file;
use crate::secure::Secure;
use crate::source::{EngineSource, SecretSource};
use crate::sources::{Sources, revisioned};
use crate::state_dir::{self, StateDir};
use crate::status::{self, Feed};
use crate::writer::{self, Writer, WriterState};
use anyhow::{Context as _, Result, anyhow};
use index::Settings;
use prometheus_client::registry::Registry;
use proto::resource::ResourceType;
use push::Push;
use std::io::IsTerminal as _;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::info;
use tracing_subscriber::EnvFilter;

/// Runs weftd until it is told to stop.
///
/// # Errors
///
/// Whatever keeps it from starting: a port in use, a directory that cannot be read, an API server that does not
/// answer, a mesh configuration that is none.
pub fn run(args: Args) -> Result<()> {
    log(&args.log)?;
    rustls::crypto::aws_lc_rs::default_provider()
        .install_default()
        .map_err(|_| anyhow!("another TLS provider is installed already"))?;
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?
        .block_on(serve(args))
}

fn log(args: &LogArgs) -> Result<()> {
    let filter = EnvFilter::try_new(log_filter(&args.log_level))
        .with_context(|| format!("--log-level {:?} is not a filter", args.log_level))?;
    let is_terminal = std::io::stderr().is_terminal();
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(is_terminal);
    match args.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// Returns the filter with what is left unsaid in it: the libraries that follow the Kubernetes API report each failed
/// attempt, and weftd says itself what fails and when it works again.
fn log_filter(given: &str) -> String {
    let mut filter = given.to_owned();
    for (part, level) in [("kube_runtime", "error"), ("kube_client", "off")] {
        if !given.contains(part) {
            filter += &format!(",{part}={level}");
        }
    }
    filter
}

async fn serve(args: Args) -> Result<()> {
    // Before anything else, so that a port in use is known at once.
    let grpc = listen(args.server.grpc_addr, "--grpc-addr").await?;
    let http = listen(args.server.http_addr, "--http-addr").await?;
    let monitoring = listen(args.server.monitoring_addr, "--monitoring-addr").await?;
    let settings =
        Settings { domain: args.mesh.domain.as_str().into(), cluster: args.mesh.cluster_id.as_str().into() };
    let state_dir = args.source.state_dir.as_deref().map(StateDir::open).transpose()?.map(Arc::new);
    let saved = state_dir.as_deref().map(StateDir::load).unwrap_or_default();
    let base = args.mesh.mesh_config.as_deref();
    let base = base
        .map(|path| mesh_file::read_first(path, &settings.domain, &settings.cluster, saved.mesh.as_deref()));
    let base = base.transpose()?;

    let (changes, inbox) = mpsc::channel(1024);
    let (state_sender, state) = watch::channel(WriterState::default());
    let push = Push::spawn(Arc::default()).context("cannot start the push engine")?;
    let mut tasks = JoinSet::new();
    let started = Sources::start(&args, base, &saved, &changes, &mut tasks).await?;
    drop(changes);
    state_sender.send_modify(|state| state.waiting_for = started.names.iter().copied().collect());
    let (held_sender, held) = watch::channel(None);
    let (accepted_mesh, accepted) = watch::channel(None);
    let (facts_sender, facts) = watch::channel(Arc::default());
    let is_reported = args.source.config.is_none() && args.admission.write.contains(&Writes::Status);
    let (noted, told) = mpsc::unbounded_channel();
    let service = revisioned("istiod", &args.mesh.revision);
    let (without_effect, unsupported) = mpsc::unbounded_channel();
    if let Some(client) = connect(&args).await? {
        let allows = args.source.allow_unenforced_policies;
        tasks.spawn(async move {
            status::follow_unsupported(client, allows, without_effect).await;
            Err(anyhow!("nobody follows kinds that are not acted on any more"))
        });
    }
    let feed = is_reported.then(|| Feed::new(noted, args.source.namespace.clone(), service));
    let writer = Writer {
        settings,
        sources: started.names,
        restored: saved.refused.clone(),
        restored_mesh: saved.mesh.clone(),
        accepted_mesh,
        facts: facts_sender,
        push: push.clone(),
        state: state_sender,
        feed,
        held: held_sender,
    };
    tasks.spawn(async move {
        writer::write(writer, inbox).await;
        Err(anyhow!("all sources have ended"))
    });
    if let Some(directory) = state_dir {
        // They end with the writer, which is noticed there.
        tokio::spawn(state_dir::keep_mesh(directory.clone(), accepted.clone(), saved.mesh.clone()));
        tokio::spawn(state_dir::keep(directory, held.clone(), started.kept, saved));
    }

    let engine = push.clone();
    tasks.spawn(async move {
        engine.ended().await;
        // A weftd that goes on without it would look ready and change nothing any more.
        Err(anyhow!("the push engine has ended"))
    });

    let mut registry = Registry::default();
    let metrics = xds::Metrics::register(&mut registry);
    // Streams of secrets alone are no proxies, so they are not counted as such.
    let secret_metrics = xds::Metrics::register(registry.sub_registry_with_prefix("weft_sds"));
    let connection_metrics = serve::Metrics::register(&mut registry);
    let mut secure = Secure::prepare(&args, &mut registry, state.clone()).await?;
    let (write_states, writes) = watch::channel(controllers::WriteStates::new());
    let (mut admission, mut writing) = (None, None);
    if let Some(secure) = &mut secure {
        let (bundles, seen) = watch::channel(None);
        let presenting = secure.present(seen);
        let ground = Ground {
            facts: facts.clone(),
            mesh: accepted,
            state: state.clone(),
            certificates: presenting.certificates.clone(),
            client: connect(&args).await?,
        };
        let port = Admission::prepare(&args, ground, &mut registry, &mut tasks).await?;
        if !args.admission.write.is_empty() {
            let client = connect(&args).await?.context("without a cluster there is nothing to --write to")?;
            let settings = port.settings();
            let identity = admission::identity(args.admission.pod_name.as_deref())?;
            let states = write_states;
            writing = Some(Writing {
                client,
                identity,
                presenting,
                bundles,
                facts,
                settings,
                states,
                status: None,
            });
        }
        admission = Some(port);
    }
    let source = EngineSource {
        is_reported,
        secrets: secure.as_ref().map(Secure::secrets),
        push: push.clone(),
        state: state.clone(),
        sources: started.sources.clone(),
        domain: args.mesh.domain.clone(),
        secrets_anywhere: args.server.insecure_plaintext_secrets,
    };
    let config = xds::Config::standard(format!("weftd {}", env!("CARGO_PKG_VERSION")));
    let server = xds::Server::new(Arc::new(source), config.clone(), metrics);
    let mut for_replicas = axum::Router::new();
    if let (true, Some(secure), Some(writing)) = (is_reported, &secure, &mut writing) {
        let ground = status::Ground {
            told,
            unsupported,
            push: push.clone(),
            sessions: server.registry(),
            state: state.clone(),
            namespace: args.source.namespace.clone(),
            account: args.admission.service_account.clone(),
            name: writing.identity.clone(),
        };
        let (route, status) = status::start(ground, secure, &mut tasks);
        for_replicas = route;
        writing.status = Some(status);
    }
    let stopping = CancellationToken::new();
    let admin = AdminState {
        writer: state.clone(),
        sources: started.sources,
        push,
        sessions: server.registry(),
        metrics: Arc::new(registry),
        rotation: secure.as_ref().map(Secure::progress),
        doorkeepers: secure.as_ref().map(Secure::doorkeepers),
        namespace: args.source.namespace.clone(),
        writes,
        ports: secure
            .iter()
            .map(|secure| ("encrypted xDS", secure.served()))
            .chain(admission.iter().map(|admission| ("webhooks", admission.served())))
            .collect(),
        stopping: stopping.clone(),
    };
    tasks.spawn(admin::serve_health(http, admin.clone()));
    tasks.spawn(admin::serve_monitoring(monitoring, admin));
    info!(grpc = %args.server.grpc_addr, http = %args.server.http_addr, monitoring = %args.server.monitoring_addr, "weftd is up");

    let grace = args.server.shutdown_duration;
    let limits = serve::Limits::standard(args.server.max_connections);
    let plain = serve::Config { drain_grace: grace, ..serve::Config::standard("plaintext", limits) };
    let mut secured = JoinSet::new();
    let mut secret_server = None;
    if let Some(admission) = admission {
        secured.spawn(admission.serve(stopping.clone()));
    }
    if let Some(writing) = writing {
        secured.spawn(admission::write(args.clone(), writing, stopping.clone()));
    }
    if let Some(secure) = secure {
        let source = SecretSource { secrets: secure.secrets(), domain: args.mesh.domain.clone() };
        let config = xds::Config { only: Some(ResourceType::Secret), ..config };
        let secrets = xds::Server::new(Arc::new(source), config, secret_metrics);
        let mut routes = server.routes().await?.add_service(secrets.secret_service());
        let services = std::mem::take(routes.axum_router_mut());
        *routes.axum_router_mut() = services.merge(for_replicas);
        secured.spawn(secure.serve(routes, connection_metrics.clone(), stopping.clone()));
        // It lives as long as its streams may.
        secret_server = Some(secrets);
    }
    let streams = server.serve(grpc, plain, &connection_metrics, stopping.clone().cancelled_owned());
    tokio::pin!(streams);
    tokio::select! {
        result = &mut streams => return result.context("the xDS server ended"),
        Some(ended) = secured.join_next() => return ended.context("a task panicked")?,
        Some(ended) = tasks.join_next() => return ended.context("a task panicked")?,
        result = told_to_stop() => result?,
    }
    info!("stopping: not ready any more, ending streams");
    // Streams first, so that clients are told why theirs end: `stopping` drains the connections that they are on.
    server.stop().await;
    if let Some(server) = &secret_server {
        server.stop().await;
    }
    stopping.cancel();
    // They wait for their streams, and no longer than the grace that they have.
    let (streams, _) = tokio::join!(streams, secured.join_all());
    streams.context("the xDS server ended")?;
    info!("stopped");
    Ok(())
}

/// Returns a client for what must not wait behind lists; nothing without a cluster.
async fn connect(args: &Args) -> Result<Option<controllers::Client>> {
    if args.source.config.is_some() {
        return Ok(None);
    }
    Ok(Some(
        controllers::connect(&controllers::Config::questions(
            args.source.kubeconfig.clone(),
            &args.source.namespace,
        ))
        .await?,
    ))
}

async fn listen(address: SocketAddr, flag: &str) -> Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address} ({flag})"))
}

/// Returns at the first SIGTERM or SIGINT. The second one ends the process at once.
async fn told_to_stop() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => std::process::exit(143),
            _ = interrupt.recv() => std::process::exit(130),
        }
    });
    Ok(())
}
