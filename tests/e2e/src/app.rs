//! Stand-ins for applications: what they answer is a closure, and they stop as applications do.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::Context;

/// A request as the application sees it.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: String,
    /// The path with its query.
    pub path: String,
    /// The headers, names in lower case.
    pub headers: HashMap<String, String>,
}

impl Request {
    /// Returns a header; empty if there is none.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map(String::as_str).unwrap_or_default()
    }
}

/// What the application answers.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
    /// How long it takes.
    pub delay: Duration,
}

impl Answer {
    /// Returns the answer 200.
    pub fn ok(body: impl Into<String>) -> Self {
        Self { status: 200, body: body.into(), delay: Duration::ZERO }
    }

    /// Returns the answer with another status.
    #[must_use]
    pub fn status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Returns the answer after some time.
    #[must_use]
    pub fn after(mut self, delay: Duration) -> Self {
        self.delay = delay;
        self
    }
}

/// A server that hands each connection to a closure on a thread of its own. Closed on drop.
#[derive(Debug)]
pub struct App {
    address: SocketAddr,
    shared: Arc<Shared>,
    acceptor: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    stopping: AtomicBool,
    connections: Mutex<HashMap<u64, TcpStream>>,
    requests: AtomicU64,
    active: AtomicUsize,
}

impl App {
    /// Starts an HTTP/1.1 application.
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on.
    pub fn http(
        address: SocketAddr,
        handler: impl Fn(&Request) -> Answer + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::start(address, move |stream, shared| {
            // A client that goes away is no reason to complain.
            let _ = serve_http(&stream, shared, &handler);
        })
    }

    /// Starts an application that speaks no HTTP.
    ///
    /// # Errors
    ///
    /// If the address cannot be listened on.
    pub fn tcp(
        address: SocketAddr,
        handler: impl Fn(&mut TcpStream) -> io::Result<()> + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        Self::start(address, move |mut stream, shared| {
            shared.requests.fetch_add(1, Ordering::Relaxed);
            let _ = handler(&mut stream);
        })
    }

    fn start(
        address: SocketAddr,
        handler: impl Fn(TcpStream, &Shared) + Send + Sync + 'static,
    ) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(address).with_context(|| format!("cannot listen on {address}"))?;
        let address = listener.local_addr().context("a listener has an address")?;
        let shared = Arc::new(Shared::default());
        let (handler, accepting) = (Arc::new(handler), shared.clone());
        let acceptor = thread::spawn(move || {
            for number in 0.. {
                let Ok((stream, _)) = listener.accept() else { continue };
                if accepting.stopping.load(Ordering::SeqCst) {
                    return;
                }
                let (handler, shared) = (handler.clone(), accepting.clone());
                let Ok(other) = stream.try_clone() else { continue };
                shared.lock().insert(number, other);
                thread::spawn(move || {
                    handler(stream, &shared);
                    if let Some(stream) = shared.lock().remove(&number) {
                        let _ = stream.shutdown(Shutdown::Both);
                    }
                });
            }
        });
        Ok(Self { address, shared, acceptor: Some(acceptor) })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Returns how many requests (connections, without HTTP) it has got.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Returns how many requests are being answered.
    pub fn active(&self) -> usize {
        self.shared.active.load(Ordering::SeqCst)
    }
}

impl Drop for App {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        // Wakes the acceptor; if nobody answers, it is gone already.
        let _ = TcpStream::connect_timeout(&self.address, Duration::from_secs(1));
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
        for stream in self.shared.lock().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve_http(stream: &TcpStream, shared: &Shared, handler: &impl Fn(&Request) -> Answer) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    let mut writer = stream;
    while let Some(request) = read_request(&mut reader)? {
        shared.active.fetch_add(1, Ordering::SeqCst);
        shared.requests.fetch_add(1, Ordering::Relaxed);
        let answer = handler(&request);
        thread::sleep(answer.delay);
        let head = format!(
            "HTTP/1.1 {} Stand-in\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n",
            answer.status,
            answer.body.len()
        );
        let written = writer.write_all((head + &answer.body).as_bytes());
        shared.active.fetch_sub(1, Ordering::SeqCst);
        written?;
    }
    Ok(())
}

/// Reads a request with its body; `None` if the client has no more.
fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace();
    let (method, path) =
        (words.next().unwrap_or_default().to_owned(), words.next().unwrap_or_default().to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    io::copy(&mut reader.take(length), &mut io::sink())?;
    Ok(Some(Request { method, path, headers }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::rig::http::Request as Client;

    #[test]
    fn it_answers_and_counts_and_stops() {
        let app = App::http("127.0.0.1:0".parse().unwrap(), |request| {
            Answer::ok(format!("{} {} {}", request.method, request.path, request.header("host"))).status(202)
        });
        let app = app.unwrap();
        let answer = Client::get("/a?b=c").header("host", "x.example").send(app.address()).unwrap();
        assert_eq!((answer.status, answer.text()), (202, "GET /a?b=c x.example".to_owned()));
        assert_eq!(app.requests(), 1);
        let address = app.address();
        drop(app);
        assert!(Client::get("/").send(address).is_err());
    }
}
