//! The response side of a stream: frames that clients share, then trailers.

use crate::encode::Frame;
use bytes::Bytes;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::sync::mpsc;
use tonic::Status;

/// What a driver writes.
#[derive(Debug)]
pub(crate) enum Outgoing {
    /// A message.
    Message(Frame),
    /// The end of the stream.
    End(Status),
}

/// An HTTP body made of what the driver of a stream writes. Every buffer goes out as it is: the message is neither
/// encoded nor copied again.
#[derive(Debug)]
pub(crate) struct FrameBody {
    incoming: mpsc::Receiver<Outgoing>,
    /// What is left of the message that is being written.
    tail: std::vec::IntoIter<Bytes>,
    ended: bool,
}

impl FrameBody {
    pub(crate) fn new(incoming: mpsc::Receiver<Outgoing>) -> Self {
        Self { incoming, tail: Vec::new().into_iter(), ended: false }
    }

    fn end(&mut self, status: &Status) -> http_body::Frame<Bytes> {
        self.ended = true;
        http_body::Frame::trailers(trailers(status))
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
        if this.ended {
            return Poll::Ready(None);
        }
        if let Some(part) = this.tail.next() {
            return Poll::Ready(Some(Ok(http_body::Frame::data(part))));
        }
        let frame = match std::task::ready!(this.incoming.poll_recv(cx)) {
            Some(Outgoing::Message(Frame { head, tail })) => {
                this.tail = tail.into_iter();
                http_body::Frame::data(head)
            }
            Some(Outgoing::End(status)) => this.end(&status),
            None => this.end(&Status::internal("the stream's task ended without a status")),
        };
        Poll::Ready(Some(Ok(frame)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http_body::Body;

    fn next(body: &mut FrameBody) -> Option<http_body::Frame<Bytes>> {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        match Pin::new(body).poll_frame(&mut cx) {
            Poll::Ready(frame) => frame.map(|frame| frame.expect("bodies do not fail")),
            Poll::Pending => panic!("nothing was written"),
        }
    }

    #[test]
    fn a_body_is_frames_and_then_a_status() {
        let (sender, receiver) = mpsc::channel(4);
        let mut body = FrameBody::new(receiver);
        let frame = Frame { head: Bytes::from_static(b"head"), tail: vec![Bytes::from_static(b"tail")] };
        sender.try_send(Outgoing::Message(frame)).unwrap();
        sender.try_send(Outgoing::End(Status::unavailable("later"))).unwrap();
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "head");
        assert_eq!(next(&mut body).unwrap().into_data().unwrap(), "tail");
        let trailers = next(&mut body).unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "later");
        assert!(next(&mut body).is_none());
    }

    #[test]
    fn a_task_that_vanishes_is_an_internal_error() {
        let (sender, receiver) = mpsc::channel(1);
        drop(sender);
        let trailers = next(&mut FrameBody::new(receiver)).unwrap().into_trailers().unwrap();
        assert_eq!(trailers["grpc-status"], "13");
    }
}
