//! A client that keeps its connection, as browsers and load generators do.
//!
//! It honours `Connection: close`, and repeats a GET once if a connection that was used before is closed before any
//! byte of the answer: a server may close an idle connection at any time, and the client cannot know.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
    /// Envoy's reason, if it answered by itself and said why.
    pub flags: String,
}

/// A client of one server.
#[derive(Debug)]
pub struct Client {
    server: SocketAddr,
    limit: Duration,
    connection: Option<BufReader<TcpStream>>,
}

impl Client {
    /// Returns a client whose requests may take `limit`.
    pub fn new(server: SocketAddr, limit: Duration) -> Self {
        Self { server, limit, connection: None }
    }

    /// Sends a GET request.
    ///
    /// # Errors
    ///
    /// If there is no answer.
    pub fn get(&mut self, host: &str, path: &str) -> io::Result<Answer> {
        let head = format!("GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n");
        if let Some(connection) = self.connection.take()
            && let Some(answer) = self.exchange(connection, &head)?
        {
            return Ok(answer);
        }
        let stream = TcpStream::connect_timeout(&self.server, self.limit)?;
        stream.set_read_timeout(Some(self.limit))?;
        stream.set_write_timeout(Some(self.limit))?;
        stream.set_nodelay(true)?;
        let answer = self.exchange(BufReader::new(stream), &head)?;
        answer.ok_or_else(|| {
            io::Error::new(io::ErrorKind::UnexpectedEof, "closed before any byte of the answer")
        })
    }

    /// Returns `None` if the connection was closed before any byte of the answer.
    fn exchange(&mut self, mut connection: BufReader<TcpStream>, head: &str) -> io::Result<Option<Answer>> {
        if is_closed(connection.get_mut().write_all(head.as_bytes()))?.is_none() {
            return Ok(None);
        }
        let mut line = String::new();
        match is_closed(connection.read_line(&mut line))? {
            None | Some(0) if line.is_empty() => return Ok(None),
            _ => {}
        }
        let status = line.split(' ').nth(1).and_then(|word| word.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("not HTTP: {line:?}")))?;
        let (mut length, mut close, mut flags) = (None, false, String::new());
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line)? == 0 {
                return Err(io::Error::new(
                    io::ErrorKind::UnexpectedEof,
                    "closed in the middle of the headers",
                ));
            }
            let Some((name, value)) = line.split_once(':') else { break };
            match (name.to_ascii_lowercase().as_str(), value.trim()) {
                ("content-length", value) => length = value.parse::<u64>().ok(),
                ("connection", value) => close = value.eq_ignore_ascii_case("close"),
                ("x-envoy-overloaded", _) => flags.push_str("overloaded"),
                _ => {}
            }
        }
        // Neither Envoy's own answers nor those of the stand-ins are chunked.
        let length = length.ok_or_else(|| io::Error::other("an answer without a length"))?;
        let mut body = String::new();
        if (&mut connection).take(length).read_to_string(&mut body)? as u64 != length {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the middle of the body"));
        }
        if !close {
            self.connection = Some(connection);
        }
        Ok(Some(Answer { status, body, flags }))
    }
}

/// Tells a connection that the server has closed from other failures.
fn is_closed<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe) => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

    /// Serves the answers, one list a connection, and returns how many connections and requests there were.
    fn serve(connections: Vec<Vec<&'static str>>) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for answers in connections {
                let (stream, _) = listener.accept().unwrap();
                let mut reader = BufReader::new(&stream);
                for answer in answers {
                    let mut line = String::new();
                    while line != "\r\n" {
                        line.clear();
                        reader.read_line(&mut line).unwrap();
                    }
                    (&stream).write_all(answer.as_bytes()).unwrap();
                }
            }
        });
        address
    }

    #[test]
    fn an_idle_connection_that_is_closed_is_no_failure() {
        let mut client = Client::new(serve(vec![vec![OK], vec![OK]]), Duration::from_secs(5));
        assert_eq!(client.get("x", "/").unwrap().body, "ok");
        assert_eq!(client.get("x", "/").unwrap().body, "ok");
    }

    #[test]
    fn a_new_connection_that_is_closed_is_a_failure() {
        let mut client = Client::new(serve(vec![vec![]]), Duration::from_secs(5));
        assert_eq!(client.get("x", "/").unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }

    #[test]
    fn half_an_answer_is_a_failure() {
        let half = "HTTP/1.1 200 OK\r\ncontent-length: 20\r\n\r\nok";
        let mut client = Client::new(serve(vec![vec![OK, half], vec![OK]]), Duration::from_secs(5));
        client.get("x", "/").unwrap();
        assert_eq!(client.get("x", "/").unwrap_err().to_string(), "closed in the middle of the body");
    }

    #[test]
    fn connection_close_is_honoured() {
        let last = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok";
        let mut client = Client::new(serve(vec![vec![last], vec![OK]]), Duration::from_secs(5));
        client.get("x", "/").unwrap();
        assert!(client.connection.is_none());
        client.get("x", "/").unwrap();
    }
}
