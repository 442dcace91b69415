//! From arguments to a running agent.

use crate::args::{Args, Command, ProxyArgs, RequestArgs, WaitArgs};
use crate::bootstrap;
use crate::capture;
use crate::config::{CertificateSource, Config, Environment, Families, Roots};
use crate::envoy_admin::EnvoyAdmin;
use crate::http::Question;
use crate::identity::authority::Client;
use crate::identity::renew;
use crate::logging;
use crate::metrics::Metrics;
use crate::roots::stream;
use crate::sds;
use crate::status::{self, Status};
use crate::store::Store;
use crate::supervisor::{self, Phase};
use anyhow::Context as _;
use http::{Method, Uri};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;

/// Does what is asked for.
///
/// # Errors
/// Why it could not be done.
pub fn run(args: &Args) -> anyhow::Result<()> {
    match &args.command {
        Command::Proxy(args) => {
            let config = load(args)?;
            // A proxy's life is short of work: two threads serve it, however many processors there are.
            let runtime =
                tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let ended = runtime.block_on(proxy(config));
            runtime.shutdown_timeout(Duration::from_secs(1));
            ended
        }
        Command::Bootstrap(args) => {
            let text = bootstrap::json(&load(args)?).context("the bootstrap has no JSON form")?;
            Ok(std::io::stdout().write_all(text.as_bytes())?)
        }
        Command::Wait(args) => block_on(wait(args)),
        Command::Request(args) => block_on(request(args)),
        Command::Capture(args) => capture::run(args),
    }
}

fn block_on(work: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work)
}

fn load(args: &ProxyArgs) -> anyhow::Result<Config> {
    logging::start(&args.log)?;
    let config = Config::load(args, &Environment::of_process(), &|path| std::fs::read_to_string(path))?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    Ok(config)
}

/// Runs all parts until Envoy has ended, or one of them cannot go on.
async fn proxy(config: Config) -> anyhow::Result<()> {
    write_bootstrap(&config)?;
    let metrics = Metrics::new();
    let store = Arc::new(Store::new(mounted_only(&config)));
    let phase = watch::channel(Phase::Running).0;

    let socket = Path::new(bootstrap::SDS_SOCKET);
    let socket = sds::bind(socket).with_context(|| format!("cannot listen on {}", socket.display()))?;
    let status = Arc::new(Status::new(&config, metrics.clone(), phase.clone()));
    let listener = listen(&config).await?;
    tracing::info!(node = config.node.id, control_plane = config.discovery.host, "the agent runs");

    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(renew::run(config.identity.clone(), client(&config), store.clone(), metrics));
    tasks.spawn(sds::follow(store.clone(), config.discovery.clone()));
    tasks.spawn(stream::follow(config.discovery.clone(), bootstrap::agent_node(&config), store.clone()));
    tokio::select! {
        ended = supervisor::run(&config, &phase) => ended,
        served = sds::serve(socket, store) => {
            served.context("cannot serve secrets")?;
            anyhow::bail!("the server of secrets has ended")
        }
        served = status::serve(listener, status) => {
            served.context("cannot serve the status port")?;
            anyhow::bail!("the server of the status port has ended")
        }
        Some(task) = tasks.join_next() => {
            task.context("a part of the agent has failed")?;
            anyhow::bail!("a part of the agent has ended")
        }
    }
}

fn write_bootstrap(config: &Config) -> anyhow::Result<()> {
    let text = bootstrap::json(config).context("the bootstrap has no JSON form")?;
    let path = supervisor::bootstrap_path(config);
    std::fs::create_dir_all(&config.envoy.config_dir)
        .and_then(|()| std::fs::write(&path, text))
        .with_context(|| format!("cannot write {}", path.display()))
}

/// Whether somebody has named the roots of the control plane, so that no others count.
fn mounted_only(config: &Config) -> bool {
    let roots = config.discovery.trust.as_ref().map(|trust| &trust.roots);
    matches!(roots, Some(Roots::File { and_workload_roots: false, .. }))
}

async fn listen(config: &Config) -> anyhow::Result<TcpListener> {
    let any: IpAddr = match config.node.families {
        Families::V4 => Ipv4Addr::UNSPECIFIED.into(),
        // With IPv4 too, unless the system says otherwise.
        Families::V6 | Families::V4AndV6 | Families::V6AndV4 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let address = SocketAddr::new(any, config.ports.status);
    TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
}

fn client(config: &Config) -> Option<Client> {
    let CertificateSource::Authority { server, token, provisioned, .. } = &config.identity.source else {
        return None;
    };
    let text =
        |name: &str| config.node.metadata.get(name).and_then(|value| value.as_str()).map(str::to_owned);
    let mut facts = vec![("WorkloadIP", config.node.addresses[0].to_string())];
    facts.extend(text("WORKLOAD_NAME").map(|name| ("WorkloadName", name)));
    facts.extend(text("CERT_SIGNER").map(|signer| ("CertSigner", signer)));
    facts.extend(text("CLUSTER_ID").map(|cluster| ("ClusterID", cluster)));
    Some(Client {
        server: server.clone(),
        token: token.clone(),
        provisioned: provisioned.clone(),
        cluster: text("CLUSTER_ID"),
        facts,
    })
}

/// Asks until the proxy is ready.
async fn wait(args: &WaitArgs) -> anyhow::Result<()> {
    let uri: Uri = args.url.parse().with_context(|| format!("{:?} is no URL", args.url))?;
    let host = uri.host().with_context(|| format!("{:?} names no host", args.url))?;
    let question = Question {
        host: host.trim_matches(['[', ']']).to_owned(),
        port: uri.port_u16().unwrap_or(80),
        path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
        timeout: Duration::from_millis(args.request_timeout_millis),
        ..Question::get((Ipv4Addr::LOCALHOST, 0).into(), "/")
    };
    let limit = Duration::from_secs(args.timeout_seconds);
    let started = Instant::now();
    loop {
        let last = match question.clone().send().await {
            Ok(answer) if answer.status.is_success() => return Ok(()),
            Ok(answer) => format!("{} {}", answer.status, String::from_utf8_lossy(&answer.body).trim()),
            Err(error) => error.to_string(),
        };
        if started.elapsed() >= limit {
            anyhow::bail!("the proxy is not ready after {limit:?}: {last}");
        }
        tokio::time::sleep(Duration::from_millis(args.period_millis)).await;
    }
}

/// Passes a request on to Envoy's administration and prints the answer.
async fn request(args: &RequestArgs) -> anyhow::Result<()> {
    let path = format!("/{}", args.path.trim_start_matches('/'));
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, args.port));
    let method: Method = args.method.to_uppercase().parse().context("no such method")?;
    let answer = if method == Method::GET {
        EnvoyAdmin::new(address).get(&path).await
    } else {
        Question { method, ..Question::get(address, &path) }.send().await
    };
    let answer = answer.with_context(|| format!("cannot ask Envoy at {address}"))?;
    std::io::stdout().write_all(&answer.body)?;
    anyhow::ensure!(answer.status.is_success(), "Envoy answers {}", answer.status);
    Ok(())
}
