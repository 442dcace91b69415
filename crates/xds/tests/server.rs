//! The server over real connections.

use bytes::Bytes;
use futures::future::BoxFuture;
use proto::envoy::config::core::v3::Node;
use proto::envoy::service::discovery::v3::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use proto::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, DiscoveryRequest};
use proto::resource::{Body, Needs, Resource, ResourceType, Snapshot};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use xds::session::{ChannelState, Event};
use xds::{Config, ConnectError, Connection, Metrics, Observer, PeerInfo, Registry, Server, SnapshotSource};

struct Source {
    snapshots: watch::Sender<Arc<Snapshot>>,
    events: Sender<Event>,
}

struct Recorder(Sender<Event>);

impl Observer for Recorder {
    fn observe(&mut self, event: &Event) {
        let _ = self.0.send(event.clone());
    }
}

impl SnapshotSource for Source {
    fn connect(&self, node: &Node, peer: &PeerInfo) -> BoxFuture<'_, Result<Connection, ConnectError>> {
        assert!(peer.address.is_some());
        let connected = match node.id.as_str() {
            "stranger" => Err(ConnectError::PermissionDenied("strangers are not served".to_owned())),
            _ => Ok(Connection {
                snapshots: self.snapshots.subscribe(),
                drain_time: None,
                on_demand: &[],
                observer: Box::new(Recorder(self.events.clone())),
            }),
        };
        Box::pin(std::future::ready(connected))
    }
}

fn cluster(name: &str, content: Vec<u8>) -> (Arc<str>, Arc<Resource>) {
    let body = Body::Whole(Bytes::from(content));
    (name.into(), Arc::new(Resource::new(ResourceType::Cluster, name, body, Needs::default())))
}

fn snapshot(clusters: Vec<(Arc<str>, Arc<Resource>)>) -> Arc<Snapshot> {
    Arc::new(Snapshot { clusters: clusters.into_iter().collect(), ..Snapshot::default() })
}

struct Running {
    address: SocketAddr,
    source: Arc<Source>,
    events: Receiver<Event>,
    registry: Registry,
    shutdown: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

async fn start(snapshot: Arc<Snapshot>, config: Config) -> Running {
    start_with(snapshot, config, serve::Config::standard("test", serve::Limits::standard(100))).await
}

async fn start_with(snapshot: Arc<Snapshot>, config: Config, connections: serve::Config) -> Running {
    let (sender, events) = channel();
    let source = Arc::new(Source { snapshots: watch::Sender::new(snapshot), events: sender });
    let metrics = Metrics::register(&mut prometheus_client::registry::Registry::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::new(source.clone(), config, metrics);
    let registry = server.registry();
    let (shutdown, ends) = oneshot::channel::<()>();
    let ended = tokio::spawn(async move {
        let metrics = serve::Metrics::default();
        server.serve(listener, connections, &metrics, async { drop(ends.await) }).await.unwrap();
    });
    Running { address, source, events, registry, shutdown, ended }
}

impl Running {
    async fn client(&self) -> AggregatedDiscoveryServiceClient<Channel> {
        let channel = Channel::from_shared(format!("http://{}", self.address)).unwrap();
        AggregatedDiscoveryServiceClient::new(channel.connect().await.unwrap())
            .max_decoding_message_size(64 << 20)
    }

    async fn delta(
        &self,
        first: DeltaDiscoveryRequest,
    ) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>), Status> {
        let (sender, receiver) = mpsc::channel(8);
        sender.send(first).await.unwrap();
        let response = self.client().await.delta_aggregated_resources(ReceiverStream::new(receiver)).await?;
        Ok((sender, response.into_inner()))
    }
}

fn clusters_wanted(node: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        node: Some(Node { id: node.to_owned(), ..Node::default() }),
        type_url: ResourceType::Cluster.type_url().to_owned(),
        ..DeltaDiscoveryRequest::default()
    }
}

fn ack(nonce: String) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: ResourceType::Cluster.type_url().to_owned(),
        response_nonce: nonce,
        ..DeltaDiscoveryRequest::default()
    }
}

#[tokio::test]
async fn a_delta_client_is_served_and_followed() {
    let large = vec![7; 200_000];
    let running = start(snapshot(vec![cluster("a", large.clone())]), Config::standard("weft")).await;
    let (requests, mut responses) = running.delta(clusters_wanted("proxy")).await.unwrap();

    let first = responses.message().await.unwrap().unwrap();
    assert_eq!(first.resources[0].name, "a");
    assert_eq!(first.resources[0].resource.as_ref().unwrap().value, large);
    assert_eq!(first.control_plane.unwrap().identifier, "weft");
    requests.send(ack(first.nonce)).await.unwrap();

    running.source.snapshots.send_replace(snapshot(vec![cluster("b", b"b".to_vec())]));
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!(second.resources.len(), 1);
    assert_eq!(second.resources[0].name, "b");
    requests.send(ack(second.nonce)).await.unwrap();
    let second = responses.message().await.unwrap().unwrap();
    assert_eq!(second.removed_resources, ["a"]);
    requests.send(ack(second.nonce.clone())).await.unwrap();

    let mut acks = 0;
    while acks < 3 {
        // The driver reports before it reads on, so this never waits for long.
        match running.events.try_recv() {
            Ok(Event::Acked { kind: ResourceType::Cluster, .. }) => acks += 1,
            Ok(_) => {}
            Err(_) => tokio::task::yield_now().await,
        }
    }
    let view = running.registry.session("proxy").unwrap();
    loop {
        let status = running.registry.session("proxy").unwrap().status;
        let clusters = &status.channels[0];
        if clusters.state == ChannelState::Synced && clusters.nonce_acked == second.nonce {
            assert!(clusters.acked.contains_key("b") && clusters.acked.len() == 1);
            break;
        }
        tokio::task::yield_now().await;
    }
    assert_eq!(view.node.id, "proxy");

    running.shutdown.send(()).unwrap();
    let status = responses.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    drop((requests, responses));
    running.ended.await.unwrap();
    assert!(running.registry.is_empty());
}

#[tokio::test]
async fn a_sotw_client_gets_the_whole_set() {
    let running = start(
        snapshot(vec![cluster("a", b"a".to_vec()), cluster("b", b"b".to_vec())]),
        Config::standard("weft"),
    )
    .await;
    let (requests, receiver) = mpsc::channel(8);
    let request = DiscoveryRequest {
        node: Some(Node { id: "proxy".to_owned(), ..Node::default() }),
        type_url: ResourceType::Cluster.type_url().to_owned(),
        ..DiscoveryRequest::default()
    };
    requests.send(request).await.unwrap();
    let mut client = running.client().await;
    let response = client.stream_aggregated_resources(ReceiverStream::new(receiver)).await.unwrap();
    let first = response.into_inner().message().await.unwrap().unwrap();
    assert_eq!(first.resources.len(), 2);
}

#[tokio::test]
async fn a_connection_that_has_grown_old_ends_its_streams_with_a_word() {
    let connections = serve::Config {
        max_age: Some(std::time::Duration::from_millis(200)),
        ..serve::Config::standard("test", serve::Limits::standard(100))
    };
    let snapshot = snapshot(vec![cluster("a", b"a".to_vec())]);
    let running = start_with(snapshot, Config::standard("weft"), connections).await;
    let (_requests, mut responses) = running.delta(clusters_wanted("proxy")).await.unwrap();
    responses.message().await.unwrap().unwrap();
    let status = responses.message().await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert_eq!(status.message(), "the connection is about to be closed: connect again");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let config = Config { send_timeout: std::time::Duration::from_millis(200), ..Config::standard("weft") };
    // More than HTTP/2 lets a server send to a client that takes nothing.
    let clusters = (0..64).map(|index| cluster(&format!("c{index:02}"), vec![0; 1 << 17]));
    let running = start(snapshot(clusters.collect()), config).await;
    let (_other, mut reads) = running.delta(clusters_wanted("reads")).await.unwrap();
    reads.message().await.unwrap().unwrap();
    let (_requests, mut responses) = running.delta(clusters_wanted("proxy")).await.unwrap();
    let ends = async {
        for is_there in [false, true] {
            while running.registry.session("proxy").is_some() == is_there {
                tokio::task::yield_now().await;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), ends).await.unwrap();
    assert!(responses.message().await.is_err());
    assert!(running.registry.session("reads").is_some(), "who reads is not");
}

async fn refusal(running: &Running, first: DeltaDiscoveryRequest) -> Status {
    match running.delta(first).await {
        Err(status) => status,
        Ok((_requests, mut responses)) => responses.message().await.unwrap_err(),
    }
}

#[tokio::test]
async fn strangers_and_the_nameless_are_refused() {
    let running = start(snapshot(Vec::new()), Config::standard("weft")).await;
    let status = refusal(&running, clusters_wanted("stranger")).await;
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "not permitted: strangers are not served");
    assert_eq!(refusal(&running, clusters_wanted("")).await.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn streams_beyond_the_limit_are_refused() {
    let config = Config { max_streams: 1, ..Config::standard("weft") };
    let running = start(snapshot(vec![cluster("a", b"a".to_vec())]), config).await;
    let (_requests, mut responses) = running.delta(clusters_wanted("one")).await.unwrap();
    responses.message().await.unwrap().unwrap();
    assert_eq!(refusal(&running, clusters_wanted("two")).await.code(), Code::ResourceExhausted);
}

#[tokio::test]
async fn a_malformed_request_ends_only_its_own_stream() {
    let config = Config { max_request_bytes: 1000, ..Config::standard("weft") };
    let running = start(snapshot(vec![cluster("a", b"a".to_vec())]), config).await;
    let status = refusal(&running, clusters_wanted(&"x".repeat(2000))).await;
    assert_eq!(status.code(), Code::OutOfRange);
    let (_requests, mut responses) = running.delta(clusters_wanted("one")).await.unwrap();
    responses.message().await.unwrap().unwrap();
}

#[tokio::test]
async fn health_and_reflection_are_there() {
    let running = start(snapshot(Vec::new()), Config::standard("weft")).await;
    let channel = Channel::from_shared(format!("http://{}", running.address)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel.clone());
    let service = "envoy.service.discovery.v3.AggregatedDiscoveryService".to_owned();
    let response =
        health.check(tonic_health::pb::HealthCheckRequest { service: service.clone() }).await.unwrap();
    assert_eq!(
        response.into_inner().status,
        i32::from(tonic_health::pb::health_check_response::ServingStatus::Serving)
    );

    use tonic_reflection::pb::v1 as pb;
    let mut reflection = pb::server_reflection_client::ServerReflectionClient::new(channel);
    let request = pb::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(pb::server_reflection_request::MessageRequest::FileContainingSymbol(service)),
    };
    let response = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
    let answer = response.into_inner().message().await.unwrap().unwrap();
    assert!(matches!(
        answer.message_response,
        Some(pb::server_reflection_response::MessageResponse::FileDescriptorResponse(_))
    ));
}
