//! `weftctl check`: whether an installation does what it is there for. `helm test` runs it in a pod.

use anyhow::{Context as _, Result, bail, ensure};
use controllers::Client;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::resource::ResourceType;
use serde_json::{Value, json};
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// How long each answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// What `weftctl check` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The host of weftd: its Service
    #[arg(long, value_name = "HOST", default_value = "istiod.istio-system.svc")]
    host: String,
    /// The revision whose webhooks are asked
    #[arg(long, default_value = "default")]
    revision: String,
    /// The namespace for objects that are tried out; nothing stays there
    #[arg(long, short = 'n', default_value = "istio-system")]
    namespace: String,
    /// Do not ask whether pods are injected
    #[arg(long)]
    no_injection: bool,
    /// Do not ask whether objects are validated
    #[arg(long)]
    no_validation: bool,
}

/// Asks weftd and the API server, and says what works.
pub(crate) fn run(args: &Args) -> Result<()> {
    // It fails if somebody has done so already, which is as good.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("cannot start a runtime")?.block_on(async {
        ready(&args.host).await.context("readiness")?;
        println!("weftd is ready");
        let clusters = clusters(&args.host).await.context("xDS")?;
        println!("weftd serves xDS: {clusters} clusters for a gateway");
        if args.no_injection && args.no_validation {
            return Ok(());
        }
        let config = controllers::Config::questions(None, &args.namespace);
        let client = controllers::connect(&config).await?;
        if !args.no_validation {
            validated(&client, args).await.context("validation")?;
            println!("objects are validated");
        }
        if !args.no_injection {
            injected(&client, args).await.context("injection")?;
            println!("pods are injected");
        }
        Ok(())
    })
}

async fn within<T>(what: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::time::timeout(LIMIT, what).await.with_context(|| format!("no answer within {LIMIT:?}"))?
}

async fn ready(host: &str) -> Result<()> {
    within(async {
        let mut stream = TcpStream::connect((host, 15014)).await?;
        stream.write_all(format!("GET /ready HTTP/1.0\r\nhost: {host}\r\n\r\n").as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        let status = answer.split(' ').nth(1).unwrap_or_default();
        ensure!(status == "200", "{}", answer.lines().last().unwrap_or("no answer"));
        Ok(())
    })
    .await
}

/// Opens a stream as a gateway that nobody knows, and returns how many clusters it is told of.
async fn clusters(host: &str) -> Result<usize> {
    within(async {
        let channel = tonic::transport::Endpoint::from_shared(format!("http://{host}:15010"))?;
        let channel = channel.connect().await.context("cannot connect")?;
        let mut client = AggregatedDiscoveryServiceClient::new(channel).max_decoding_message_size(64 << 20);
        let first = DeltaDiscoveryRequest {
            node: Some(Node {
                id: "router~127.0.0.1~weftctl-check.weftctl-check~weftctl-check.svc.cluster.local".to_owned(),
                ..Node::default()
            }),
            type_url: ResourceType::Cluster.type_url().to_owned(),
            ..DeltaDiscoveryRequest::default()
        };
        // The stream stays open until there is an answer.
        let requests = futures::StreamExt::chain(futures::stream::iter([first]), futures::stream::pending());
        let answers = client.delta_aggregated_resources(requests).await.map_err(|status| refused(&status))?;
        let answer = answers.into_inner().message().await.map_err(|status| refused(&status))?;
        Ok(answer.context("weftd has ended the stream")?.resources.len())
    })
    .await
}

fn refused(status: &tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}: {}", status.code(), status.message())
}

/// Creates an object without keeping it.
async fn create(client: &Client, path: &str, object: &Value) -> Result<Result<Value, String>> {
    let request = http::Request::post(format!("{path}?dryRun=All"))
        .header("content-type", "application/json")
        .body(object.to_string().into_bytes())?;
    within(async {
        Ok(client
            .request::<Value>(request)
            .await
            .map_err(|error| format!("{:#}", anyhow::Error::from(error))))
    })
    .await
}

/// A good VirtualService is let through, and one that no Envoy would take is refused by weftd.
async fn validated(client: &Client, args: &Args) -> Result<()> {
    let path = format!("/apis/networking.istio.io/v1/namespaces/{}/virtualservices", args.namespace);
    let object = |regex: &str| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
            "metadata": {
                "name": "weftctl-check", "namespace": args.namespace, "labels": { "istio.io/rev": args.revision },
            },
            "spec": {
                "hosts": ["weftctl-check.example"],
                "http": [{
                    "match": [{ "uri": { "regex": regex } }],
                    "route": [{ "destination": { "host": "weftctl-check.example" } }],
                }],
            },
        })
    };
    if let Err(reason) = create(client, &path, &object("/.*")).await? {
        bail!("a good VirtualService is refused: {reason}");
    }
    match create(client, &path, &object("(")).await? {
        Ok(_) => bail!("a VirtualService with a bad regular expression is accepted: no webhook is asked"),
        Err(reason) => ensure!(reason.contains("validation.istio.io"), "not refused by weftd: {reason}"),
    }
    Ok(())
}

async fn injected(client: &Client, args: &Args) -> Result<()> {
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": "weftctl-check", "namespace": args.namespace,
            "labels": { "sidecar.istio.io/inject": "true", "istio.io/rev": args.revision },
        },
        "spec": { "containers": [{ "name": "app", "image": "app" }] },
    });
    let path = format!("/api/v1/namespaces/{}/pods", args.namespace);
    let pod = match create(client, &path, &pod).await? {
        Ok(pod) => pod,
        Err(reason) => bail!("the pod is refused: {reason}"),
    };
    let containers = |field: &str| pod["spec"][field].as_array().cloned().unwrap_or_default();
    let all = [containers("containers"), containers("initContainers")].concat();
    ensure!(
        all.iter().any(|container| container["name"] == "istio-proxy"),
        "the pod has no proxy: no webhook is asked for revision {} in {} (see the labels of the namespace)",
        args.revision,
        args.namespace
    );
    Ok(())
}
