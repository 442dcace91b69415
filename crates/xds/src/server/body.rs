//! The response side of a stream: the driver's future, and the frames that it writes.
//!
//! Whoever sends the body drives the driver. It is asked only when all that it wrote before has been taken over for
//! sending, so nothing piles up for a client that does not read: by then the newest state is all that counts. No task or
//! channel lies between, which for a small change to a thousand clients would be most of the cost.

use crate::encode::Frame;
use bytes::Bytes;
use parking_lot::Mutex;
use prometheus_client::metrics::histogram::Histogram;
use serve::Peer;
use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};
use tonic::Status;

/// What a driver has written and nobody has taken yet.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outbox(Arc<Mutex<VecDeque<Frame>>>);

impl Outbox {
    /// Writes a message. It never waits: see the module's text.
    pub(crate) fn put(&self, frame: Frame) {
        self.0.lock().push_back(frame);
    }

    fn take(&self) -> Option<Frame> {
        self.0.lock().pop_front()
    }
}

/// Since when a client does not take what is there for it.
#[derive(Debug)]
pub(crate) struct Reading {
    /// Since when, in milliseconds after `origin`; [`Reading::IDLE`] if there is nothing to take.
    since: AtomicU64,
    origin: Instant,
    peer: Option<Peer>,
}

impl Reading {
    const IDLE: u64 = u64::MAX;

    pub(crate) fn new(peer: Option<Peer>) -> Self {
        Self { since: AtomicU64::new(Self::IDLE), origin: Instant::now(), peer }
    }

    fn waits(&self) {
        let elapsed = u64::try_from(self.origin.elapsed().as_millis()).unwrap_or(Self::IDLE);
        self.since.store(elapsed, Ordering::Relaxed);
    }

    fn idles(&self) {
        self.since.store(Self::IDLE, Ordering::Relaxed);
    }

    /// Closes the client's connection if it has taken nothing for as long as `patience`, and returns whether it did. To
    /// end the stream alone is not possible: its end would have to be read too.
    pub(crate) fn close_if_blocked(&self, patience: Duration) -> bool {
        let since = self.since.load(Ordering::Relaxed);
        if since == Self::IDLE || self.origin.elapsed() < Duration::from_millis(since) + patience {
            return false;
        }
        let Some(peer) = &self.peer else { return false };
        self.idles();
        peer.close();
        true
    }
}

/// An HTTP body made of what the driver of a stream writes. Every buffer goes out as it is: the message is neither
/// encoded nor copied again.
pub(crate) struct FrameBody {
    /// None once it has ended.
    driver: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
    outbox: Outbox,
    reading: Arc<Reading>,
    send_time: Histogram,
    /// When the message that is being written was begun.
    began: Option<Instant>,
    /// What is left of it.
    tail: std::vec::IntoIter<Bytes>,
    /// How the stream ends, once all messages are written.
    status: Option<Status>,
}

impl FrameBody {
    pub(crate) fn new(
        driver: impl Future<Output = Status> + Send + 'static,
        outbox: Outbox,
        reading: Arc<Reading>,
        send_time: Histogram,
    ) -> Self {
        Self {
            driver: Some(Box::pin(driver)),
            outbox,
            reading,
            send_time,
            began: None,
            tail: Vec::new().into_iter(),
            status: None,
        }
    }

    /// Returns the next part of what was written.
    fn written(&mut self) -> Option<Bytes> {
        if let Some(part) = self.tail.next() {
            return Some(part);
        }
        if let Some(began) = self.began.take() {
            self.send_time.observe(began.elapsed().as_secs_f64());
        }
        let Frame { head, tail } = self.outbox.take()?;
        self.began = Some(Instant::now());
        self.tail = tail.into_iter();
        Some(head)
    }

    fn data(&self, part: Bytes) -> http_body::Frame<Bytes> {
        self.reading.waits();
        http_body::Frame::data(part)
    }
}

fn trailers(status: &Status) -> http::HeaderMap {
    let mut trailers = http::HeaderMap::new();
    if status.add_header(&mut trailers).is_err() {
        // Only a message that is no header value can fail, and the code is worth more than the message.
        trailers.insert("grpc-status", http::HeaderValue::from(i32::from(status.code())));
    }
    trailers
}

impl http_body::Body for FrameBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        this.reading.idles();
        if let Some(part) = this.written() {
            return Poll::Ready(Some(Ok(this.data(part))));
        }
        let Some(driver) = &mut this.driver else {
            let status = this.status.take();
            return Poll::Ready(status.map(|status| Ok(http_body::Frame::trailers(trailers(&status)))));
        };
        let ended = driver.as_mut().poll(cx);
        if let Poll::Ready(status) = ended {
            this.driver = None;
            this.status = Some(status);
        }
        match (this.written(), this.status.take()) {
            (Some(part), status) => {
                this.status = status;
                Poll::Ready(Some(Ok(this.data(part))))
            }
            (None, Some(status)) => Poll::Ready(Some(Ok(http_body::Frame::trailers(trailers(&status))))),
            (None, None) => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;
    use tokio::sync::mpsc;

    fn poll(body: &mut FrameBody) -> Poll<Option<http_body::Frame<Bytes>>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        Pin::new(body).poll_frame(&mut cx).map(|frame| frame.map(|frame| frame.expect("bodies do not fail")))
    }

    fn next(body: &mut FrameBody) -> Option<http_body::Frame<Bytes>> {
        match poll(body) {
            Poll::Ready(frame) => frame,
            Poll::Pending => panic!("nothing was written"),
        }
    }

    fn frame(head: &'static str, tail: &[&'static str]) -> Frame {
        let tail = tail.iter().map(|part| Bytes::from_static(part.as_bytes())).collect();
        Frame { head: Bytes::from_static(head.as_bytes()), tail }
    }

    fn body(driver: impl Future<Output = Status> + Send + 'static, outbox: Outbox) -> FrameBody {
        FrameBody::new(driver, outbox, Arc::new(Reading::new(None)), Histogram::new([1.0]))
    }

    #[test]
    fn a_body_is_frames_and_then_a_status() {
        let outbox = Outbox::default();
        let writes = outbox.clone();
        let driver = async move {
            writes.put(frame("head", &["tail"]));
            writes.put(frame("short", &[]));
            Status::unavailable("later")
        };
        let mut body = body(driver, outbox);
        for part in ["head", "tail", "short"] {
            assert_eq!(next(&mut body).unwrap().into_data().unwrap(), part);
        }
        let trailers = next(&mut body).unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "later");
        assert!(next(&mut body).is_none());
    }

    #[test]
    fn a_driver_waits_until_what_it_wrote_is_taken() {
        let outbox = Outbox::default();
        let (news, mut new) = mpsc::unbounded_channel::<&'static str>();
        let writes = outbox.clone();
        let driver = async move {
            while let Some(text) = new.recv().await {
                writes.put(frame(text, &["tail"]));
                tokio::task::yield_now().await;
            }
            Status::ok("")
        };
        let mut body = body(driver, outbox);
        assert!(poll(&mut body).is_pending());
        news.send("one").unwrap();
        news.send("two").unwrap();
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "one");
        assert!(!body.reading.close_if_blocked(Duration::from_secs(1)), "it has only begun to wait");
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "tail");
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "two");
        drop(news);
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "tail");
        assert_eq!(next(&mut body).unwrap().into_trailers().unwrap()["grpc-status"], "0");
    }
}
