//! Stand-in apps: servers in the test's own process that say who they are and what they were sent.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::ServerConfig;
use serde_json::{Map, Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

use super::RigError;
use super::pki::Identity;
use super::server::{Server, ended};

/// An app that answers every request with JSON that says who it is and what it was sent.
///
/// Speaks HTTP/1.1 and HTTP/2 (h2c, or by ALPN with TLS). The answer:
///
/// ```json
/// {"name": "reviews", "version": "v2", "protocol": "HTTP/1.1", "method": "GET", "authority": "reviews:9080",
///  "path": "/a", "query": "b=c", "headers": {"x-user": ["jason"]}, "body_bytes": 0, "peer": "127.0.0.1:4711",
///  "sni": null}
/// ```
///
/// What it does is set per request, by path or header, or for all requests with [`HttpEcho::set_status`] and
/// [`HttpEcho::set_delay`]:
///
/// | path segment pair | header | effect |
/// | --- | --- | --- |
/// | `/status/503` | `x-echo-status: 503` | answers with this status |
/// | `/delay/250` | `x-echo-delay: 250` | answers after so many milliseconds |
/// | `/abort/now` | `x-echo-abort: now` | breaks the connection (HTTP/1.1) or resets the stream (HTTP/2) |
///
/// Pairs add up: `/delay/250/status/503`.
#[derive(Debug)]
pub struct HttpEcho {
    server: Server,
    app: Arc<App>,
}

impl HttpEcho {
    /// Starts the app in plaintext on `listen`.
    pub fn start(name: &str, version: &str, listen: SocketAddr) -> Result<Self, RigError> {
        Self::start_on(name, version, listen, None)
    }

    /// Starts the app behind TLS with this certificate.
    pub fn start_tls(
        name: &str,
        version: &str,
        listen: SocketAddr,
        identity: &Identity,
    ) -> Result<Self, RigError> {
        let config = identity.server_config(&["h2", "http/1.1"]);
        let config = config.map_err(|error| RigError::Answer {
            what: format!("the certificate of {name} is unusable"),
            answer: error.to_string(),
        })?;
        Self::start_on(name, version, listen, Some(config))
    }

    fn start_on(
        name: &str,
        version: &str,
        listen: SocketAddr,
        tls: Option<Arc<ServerConfig>>,
    ) -> Result<Self, RigError> {
        let app = Arc::new(App {
            name: name.to_owned(),
            version: version.to_owned(),
            status: AtomicU64::new(200),
            delay_ms: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            answered: AtomicU64::new(0),
        });
        let served = Arc::clone(&app);
        let server =
            Server::start(name, listen, move |listener, stop| serve_http(listener, stop, served, tls))?;
        Ok(Self { server, app })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }

    /// Sets the status of answers that ask for none.
    pub fn set_status(&self, status: u16) {
        self.app.status.store(u64::from(status), Ordering::Relaxed);
    }

    /// Sets the delay of answers that ask for none.
    pub fn set_delay(&self, delay: Duration) {
        let millis = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        self.app.delay_ms.store(millis, Ordering::Relaxed);
    }

    /// Returns how many requests have come in since the start.
    pub fn requests(&self) -> u64 {
        self.app.requests.load(Ordering::Relaxed)
    }

    /// Returns how many requests have come in and are not answered.
    pub fn in_flight(&self) -> u64 {
        let answered = self.app.answered.load(Ordering::SeqCst);
        self.app.requests.load(Ordering::SeqCst).saturating_sub(answered)
    }

    /// Ends as a well-behaved app does: takes no new connections, answers what has begun, tells kept-alive
    /// connections to close. After `limit` what is left is cut off.
    pub fn stop(self, limit: Duration) {
        self.server.stop(limit);
    }
}

/// An app over plain TCP: greets with a line `name version`, then sends every line back.
#[derive(Debug)]
pub struct TcpEcho {
    server: Server,
}

impl TcpEcho {
    /// Starts the app on `listen`.
    pub fn start(name: &str, version: &str, listen: SocketAddr) -> Result<Self, RigError> {
        let greeting: Arc<str> = format!("{name} {version}\n").into();
        let server = Server::start(name, listen, move |listener, stop| serve_tcp(listener, stop, greeting))?;
        Ok(Self { server })
    }

    /// Returns the address that it listens on.
    pub fn address(&self) -> SocketAddr {
        self.server.address
    }
}

/// Who answers, and what it has seen.
#[derive(Debug)]
struct App {
    name: String,
    version: String,
    status: AtomicU64,
    delay_ms: AtomicU64,
    requests: AtomicU64,
    answered: AtomicU64,
}

/// What is known of a connection.
#[derive(Clone, Debug)]
struct Connection {
    peer: SocketAddr,
    sni: Option<String>,
}

async fn serve_http(
    listener: TcpListener,
    mut stop: watch::Receiver<Option<Duration>>,
    app: Arc<App>,
    tls: Option<Arc<ServerConfig>>,
) {
    let graceful = GracefulShutdown::new();
    let acceptor = tls.map(TlsAcceptor::from);
    let mut connections = tokio::task::JoinSet::new();
    let limit = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            // Keeps the set from growing over a long run.
            Some(_) = connections.join_next() => continue,
            limit = ended(&mut stop) => break limit,
        };
        let Ok((stream, peer)) = accepted else { continue };
        let _ = stream.set_nodelay(true);
        let (app, watcher, acceptor) = (Arc::clone(&app), graceful.watcher(), acceptor.clone());
        connections.spawn(async move {
            match acceptor {
                None => serve_connection(stream, Connection { peer, sni: None }, app, watcher).await,
                Some(acceptor) => {
                    // A failed handshake is the client's to report.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let sni = stream.get_ref().1.server_name().map(str::to_owned);
                    serve_connection(stream, Connection { peer, sni }, app, watcher).await;
                }
            }
        });
    };
    drop(listener);
    // What is left after the limit is cut off with the set of connections.
    let _ = tokio::time::timeout(limit, graceful.shutdown()).await;
}

async fn serve_connection<S>(stream: S, connection: Connection, app: Arc<App>, watcher: Watcher)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |request| answer(Arc::clone(&app), connection.clone(), request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let served = builder.serve_connection(TokioIo::new(stream), service).into_owned();
    // A connection that the client breaks is an error here, and nobody's concern.
    let _ = watcher.watch(served).await;
}

async fn answer(
    app: Arc<App>,
    connection: Connection,
    request: Request<Incoming>,
) -> io::Result<Response<Full<Bytes>>> {
    app.requests.fetch_add(1, Ordering::SeqCst);
    // Counts the end also if the client goes away and this future is dropped.
    let _answered = Answered(&app);
    let (head, body) = request.into_parts();
    let body = body.collect().await.map_err(io::Error::other)?.to_bytes();

    let wish = |name: &str| wish(&head, name);
    let delay = wish("delay").unwrap_or_else(|| app.delay_ms.load(Ordering::Relaxed));
    if delay > 0 {
        tokio::time::sleep(Duration::from_millis(delay)).await;
    }
    if asks_for_abort(&head) {
        return Err(io::Error::other("aborted, as the request asked"));
    }
    let status = wish("status").unwrap_or_else(|| app.status.load(Ordering::Relaxed));
    let status = u16::try_from(status).ok().and_then(|status| StatusCode::from_u16(status).ok());
    let text = describe(&app, &connection, &head, body.len()).to_string();
    let answer = Response::builder()
        .status(status.unwrap_or(StatusCode::BAD_REQUEST))
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(Bytes::from(text)));
    answer.map_err(io::Error::other)
}

/// Returns the number that a path pair or, failing that, a header asks for.
fn wish(head: &http::request::Parts, name: &str) -> Option<u64> {
    text_wish(head, name)?.parse().ok()
}

fn asks_for_abort(head: &http::request::Parts) -> bool {
    text_wish(head, "abort").is_some()
}

fn text_wish<'a>(head: &'a http::request::Parts, name: &str) -> Option<&'a str> {
    let mut segments = head.uri.path().split('/').skip(1);
    while let Some(segment) = segments.next() {
        if segment == name {
            return segments.next();
        }
    }
    head.headers.get(format!("x-echo-{name}"))?.to_str().ok()
}

fn describe(app: &App, connection: &Connection, head: &http::request::Parts, body_bytes: usize) -> Value {
    // HTTP/1.1 has it in a header, HTTP/2 in the URI.
    let host = head.headers.get(header::HOST).and_then(|host| host.to_str().ok());
    json!({
        "name": app.name,
        "version": app.version,
        "protocol": format!("{:?}", head.version),
        "method": head.method.as_str(),
        "authority": head.uri.authority().map(http::uri::Authority::as_str).or(host),
        "path": head.uri.path(),
        "query": head.uri.query(),
        "headers": headers(&head.headers),
        "body_bytes": body_bytes,
        "peer": connection.peer.to_string(),
        "sni": connection.sni,
    })
}

fn headers(headers: &HeaderMap) -> Map<String, Value> {
    let mut map = Map::new();
    for (name, value) in headers {
        let values = map.entry(name.as_str()).or_insert_with(|| json!([]));
        if let Value::Array(values) = values {
            values.push(String::from_utf8_lossy(value.as_bytes()).into());
        }
    }
    map
}

struct Answered<'a>(&'a App);

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.0.answered.fetch_add(1, Ordering::SeqCst);
    }
}

async fn serve_tcp(listener: TcpListener, mut stop: watch::Receiver<Option<Duration>>, greeting: Arc<str>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => if let Ok((stream, _)) = accepted {
                connections.spawn(echo_lines(stream, Arc::clone(&greeting)));
            },
            Some(_) = connections.join_next() => {}
            _ = ended(&mut stop) => return,
        }
    }
}

async fn echo_lines(mut stream: TcpStream, greeting: Arc<str>) -> io::Result<()> {
    stream.write_all(greeting.as_bytes()).await?;
    let (read, mut write) = stream.split();
    let mut lines = BufReader::new(read);
    let mut line = Vec::new();
    while lines.read_until(b'\n', &mut line).await? > 0 {
        write.write_all(&line).await?;
        line.clear();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, Write};
    use std::time::Instant;

    use super::*;
    use crate::rig::http;
    use crate::rig::loopback;
    use crate::rig::pki::Authority;
    use std::thread;

    fn app() -> HttpEcho {
        HttpEcho::start("ratings", "v1", loopback::socket().unwrap()).unwrap()
    }

    #[test]
    fn it_says_who_it_is_and_what_it_was_sent() {
        let app = app();
        let request = http::Request::new("POST", "/x?y").header("host", "ratings:9080").header("a", "1");
        let seen = request.header("A", "2").body("12345").send(app.address()).unwrap().json().unwrap();
        assert_eq!(seen["name"], "ratings");
        assert_eq!(seen["method"], "POST");
        assert_eq!(seen["authority"], "ratings:9080");
        assert_eq!(seen["query"], "y");
        assert_eq!(seen["headers"]["a"], json!(["1", "2"]));
        assert_eq!(seen["body_bytes"], 5);
        assert_eq!((app.requests(), app.in_flight()), (1, 0));
    }

    #[test]
    fn errors_and_delays_are_had_on_command() {
        let app = app();
        let get = |path| http::Request::get(path).send(app.address());
        assert_eq!(get("/status/503").unwrap().status, 503);
        let started = Instant::now();
        assert_eq!(get("/delay/60/status/404").unwrap().status, 404);
        assert!(started.elapsed() >= Duration::from_millis(60));
        let by_header = http::Request::get("/").header("x-echo-status", "429").send(app.address()).unwrap();
        assert_eq!(by_header.status, 429);
        get("/abort/now").unwrap_err();
        app.set_status(500);
        assert_eq!(get("/").unwrap().status, 500);
    }

    #[test]
    fn stopping_lets_a_request_end_and_takes_no_new_one() {
        let app = app();
        let address = app.address();
        let slow = thread::spawn(move || http::Request::get("/delay/300").send(address).unwrap().status);
        super::super::poll("the request", Duration::from_secs(5), || (app.in_flight() == 1).then_some(()))
            .unwrap();
        app.stop(Duration::from_secs(5));
        assert_eq!(slow.join().unwrap(), 200);
        http::Request::get("/").send(address).unwrap_err();
    }

    #[test]
    fn dropping_cuts_a_request_off() {
        let app = app();
        let address = app.address();
        let slow = thread::spawn(move || http::Request::get("/delay/60000").send(address));
        super::super::poll("the request", Duration::from_secs(5), || (app.in_flight() == 1).then_some(()))
            .unwrap();
        drop(app);
        slow.join().unwrap().unwrap_err();
    }

    #[test]
    fn tls_presents_the_certificate_and_reports_the_sni() {
        let authority = Authority::new("test");
        let identity = authority.issue("secure", &["secure.example.com"]);
        let app = HttpEcho::start_tls("secure", "v1", loopback::socket().unwrap(), &identity).unwrap();
        let get = http::Request::get("/");
        let answer = get.send_tls(app.address(), "secure.example.com", authority.client_config()).unwrap();
        assert_eq!(answer.json().unwrap()["sni"], "secure.example.com");
        get.send_tls(app.address(), "other.example.com", authority.client_config()).unwrap_err();
        let stranger = Authority::new("stranger").client_config();
        get.send_tls(app.address(), "secure.example.com", stranger).unwrap_err();
    }

    #[test]
    fn tcp_is_greeted_and_echoed() {
        let app = TcpEcho::start("tcp-echo", "v2", loopback::socket().unwrap()).unwrap();
        let mut stream = std::net::TcpStream::connect(app.address()).unwrap();
        stream.write_all(b"hello\n").unwrap();
        let lines: Vec<String> =
            std::io::BufReader::new(stream).lines().take(2).map(Result::unwrap).collect();
        assert_eq!(lines, ["tcp-echo v2", "hello"]);
    }

    #[test]
    fn a_port_in_use_is_an_error() {
        let app = app();
        let error = HttpEcho::start("second", "v1", app.address()).unwrap_err();
        assert!(error.to_string().starts_with("could not listen on"), "{error}");
    }
}
