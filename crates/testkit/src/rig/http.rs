//! A small blocking HTTP/1.1 client: one connection per request, so that no answer depends on an earlier one.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, StreamOwned};

use super::RigError;

/// A request. Its `Host` is the address unless a header says otherwise.
#[derive(Clone, Debug)]
pub struct Request {
    method: String,
    path: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    limit: Duration,
}

impl Request {
    /// Returns a request for `path`, with ten seconds for each read and write.
    pub fn new(method: &str, path: &str) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            headers: Vec::new(),
            body: Vec::new(),
            limit: Duration::from_secs(10),
        }
    }

    /// Returns a GET request for `path`.
    pub fn get(path: &str) -> Self {
        Self::new("GET", path)
    }

    /// Adds a header.
    #[must_use]
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Sets the body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    /// Sets how long connecting and each read and write may take.
    #[must_use]
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Sends the request in plaintext.
    pub fn send(&self, to: SocketAddr) -> Result<Response, RigError> {
        self.connect(to)
            .and_then(|stream| self.exchange(stream, to))
            .map_err(RigError::io(format!("{} http://{to}{}", self.method, self.path)))
    }

    /// Sends the request over TLS; `server_name` is the SNI and what the certificate must be for.
    pub fn send_tls(
        &self,
        to: SocketAddr,
        server_name: &str,
        config: Arc<ClientConfig>,
    ) -> Result<Response, RigError> {
        let attempt = || {
            let name = ServerName::try_from(server_name.to_owned()).map_err(io::Error::other)?;
            let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
            self.exchange(StreamOwned::new(connection, self.connect(to)?), to)
        };
        attempt().map_err(RigError::io(format!("{} https://{to}{}", self.method, self.path)))
    }

    fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect_timeout(&to, self.limit)?;
        stream.set_read_timeout(Some(self.limit))?;
        stream.set_write_timeout(Some(self.limit))?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    fn exchange(&self, mut stream: impl Read + Write, to: SocketAddr) -> io::Result<Response> {
        let mut head = format!("{} {} HTTP/1.1\r\nconnection: close\r\n", self.method, self.path);
        if !self.headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
            head.push_str(&format!("host: {to}\r\n"));
        }
        for (name, value) in &self.headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !self.body.is_empty() {
            head.push_str(&format!("content-length: {}\r\n", self.body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes())?;
        stream.write_all(&self.body)?;
        stream.flush()?;
        Response::read(&mut BufReader::new(stream), self.method == "HEAD")
    }
}

/// An answer, read to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// The headers in their order, names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body without its transfer encoding.
    pub body: Vec<u8>,
}

impl Response {
    /// Returns the first value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(other, _)| other.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    /// Returns the body as text; bytes that are not UTF-8 are replaced.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Returns the body as JSON.
    pub fn json(&self) -> Result<serde_json::Value, RigError> {
        serde_json::from_slice(&self.body).map_err(|error| RigError::Answer {
            what: format!("not JSON ({error})"),
            answer: format!("{} {}", self.status, self.text()),
        })
    }

    fn read(stream: &mut impl BufRead, no_body: bool) -> io::Result<Self> {
        loop {
            let status_line = read_line(stream)?;
            let mut words = status_line.split(' ');
            let version = words.next().unwrap_or_default();
            let status = words.next().and_then(|word| word.parse().ok());
            let (true, Some(status)) = (version.starts_with("HTTP/1."), status) else {
                return Err(malformed(&status_line));
            };
            let headers = read_headers(stream)?;
            // 100 Continue and 103 Early Hints come before the answer.
            if status < 200 && status != 101 {
                continue;
            }
            let mut response = Self { status, headers, body: Vec::new() };
            if !no_body && status != 204 && status != 304 {
                response.body = response.read_body(stream)?;
            }
            return Ok(response);
        }
    }

    fn read_body(&self, stream: &mut impl BufRead) -> io::Result<Vec<u8>> {
        let mut body = Vec::new();
        if self.header("transfer-encoding").is_some_and(|coding| coding.eq_ignore_ascii_case("chunked")) {
            loop {
                let line = read_line(stream)?;
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = u64::from_str_radix(size, 16).map_err(|_| malformed(&line))?;
                if size == 0 {
                    read_headers(stream)?;
                    return Ok(body);
                }
                read_exactly(stream, size, &mut body)?;
                read_line(stream)?;
            }
        }
        match self.header("content-length") {
            Some(length) => {
                let length = length.parse().map_err(|_| malformed(length))?;
                read_exactly(stream, length, &mut body)?;
            }
            None => {
                stream.read_to_end(&mut body)?;
            }
        }
        Ok(body)
    }
}

fn read_headers(stream: &mut impl BufRead) -> io::Result<Vec<(String, String)>> {
    let mut headers = Vec::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            return Ok(headers);
        }
        let (name, value) = line.split_once(':').ok_or_else(|| malformed(&line))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// A line without its end; the end of the stream is an error, since every message has an end of its own.
fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed before the answer was complete"));
    }
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn read_exactly(stream: &mut impl BufRead, length: u64, body: &mut Vec<u8>) -> io::Result<()> {
    let read = stream.take(length).read_to_end(body)?;
    if read as u64 == length {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed in the middle of the body"))
}

fn malformed(text: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not HTTP: {text:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Response> {
        Response::read(&mut text.as_bytes(), false)
    }

    #[test]
    fn bodies_have_a_length_or_chunks_or_the_end() {
        let lengths = "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello, not this";
        let chunks =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhe\r\n3;x=y\r\nllo\r\n0\r\n\r\n";
        let end = "HTTP/1.0 200 OK\r\n\r\nhello";
        for text in [lengths, chunks, end] {
            assert_eq!(read(text).unwrap().text(), "hello", "{text}");
        }
    }

    #[test]
    fn a_truncated_answer_is_an_error() {
        for text in [
            "",
            "HTTP/1.1 200 OK\r\n",
            "HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhell",
            "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhe",
        ] {
            assert_eq!(read(text).unwrap_err().kind(), io::ErrorKind::UnexpectedEof, "{text}");
        }
    }

    #[test]
    fn interim_answers_are_passed_over() {
        assert_eq!(
            read("HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
                .unwrap()
                .status,
            204
        );
    }
}
