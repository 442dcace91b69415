//! The request side of a stream: messages out of a body.
//!
//! A stream lives for days and is silent for most of them, while its first message, which describes the client, is by far
//! the largest. So no buffer is kept between messages.

use crate::codec::Message;
use crate::encode::GRPC_HEADER;
use bytes::{Buf, BufMut, BytesMut};
use http_body::Body;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::pin::Pin;
use tonic::Status;

/// The messages of a client.
pub(crate) struct Requests<M> {
    body: tonic::body::Body,
    /// The beginning of a message.
    buffer: BytesMut,
    limit: usize,
    message: PhantomData<fn() -> M>,
}

impl<M: Message> Requests<M> {
    /// Reads messages of up to `limit` bytes.
    pub(crate) fn new(body: tonic::body::Body, limit: usize) -> Self {
        Self { body, buffer: BytesMut::new(), limit, message: PhantomData }
    }

    /// Returns the next message, or nothing at the end of the stream. Nothing is lost if the caller stops waiting.
    ///
    /// # Errors
    ///
    /// If the stream breaks, or something comes that is no message.
    pub(crate) async fn message(&mut self) -> Result<Option<M>, Status> {
        loop {
            if let Some(message) = self.take()? {
                return Ok(Some(message));
            }
            match poll_fn(|cx| Pin::new(&mut self.body).poll_frame(cx)).await {
                Some(frame) => {
                    if let Ok(data) = frame?.into_data() {
                        self.buffer.put(data);
                    }
                }
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a message")),
            }
        }
    }

    fn take(&mut self) -> Result<Option<M>, Status> {
        let Some(header) = self.buffer.first_chunk::<GRPC_HEADER>() else { return Ok(None) };
        let [compressed, length @ ..] = *header;
        if compressed != 0 {
            return Err(Status::unimplemented("compressed messages are not accepted"));
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.limit {
            let limit = self.limit;
            let text = format!("a message of {length} bytes, while {limit} are accepted");
            return Err(Status::out_of_range(text));
        }
        if self.buffer.len() < GRPC_HEADER + length {
            self.buffer.reserve(GRPC_HEADER + length - self.buffer.len());
            return Ok(None);
        }
        self.buffer.advance(GRPC_HEADER);
        let message = M::decode(self.buffer.split_to(length));
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
        message.map(Some).map_err(|error| Status::invalid_argument(format!("malformed request: {error}")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proto::envoy::service::discovery::v3::DeltaDiscoveryRequest;
    use std::task::{Context, Poll};
    use tonic::Code;

    /// A body that comes in the given parts.
    struct Parts(std::vec::IntoIter<Bytes>);

    impl Body for Parts {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<http_body::Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.next().map(|part| Ok(http_body::Frame::data(part))))
        }
    }

    fn requests(parts: Vec<Bytes>) -> Requests<DeltaDiscoveryRequest> {
        Requests::new(tonic::body::Body::new(Parts(parts.into_iter())), 100)
    }

    fn message(nonce: &str) -> Vec<u8> {
        let request =
            DeltaDiscoveryRequest { response_nonce: nonce.to_owned(), ..DeltaDiscoveryRequest::default() };
        let body = prost::Message::encode_to_vec(&request);
        let mut message = vec![0];
        message.extend(u32::try_from(body.len()).unwrap().to_be_bytes());
        message.extend(body);
        message
    }

    #[tokio::test]
    async fn messages_come_in_parts_of_any_size() {
        let both = [message("one"), message("two")].concat();
        for size in 1..=both.len() {
            let mut requests = requests(both.chunks(size).map(Bytes::copy_from_slice).collect());
            assert_eq!(requests.message().await.unwrap().unwrap().response_nonce, "one");
            assert_eq!(requests.message().await.unwrap().unwrap().response_nonce, "two");
            assert_eq!(requests.buffer.capacity(), 0);
            assert!(requests.message().await.unwrap().is_none());
        }
    }

    #[tokio::test]
    async fn what_is_no_message_ends_the_stream() {
        let code = async |bytes: &[u8]| {
            requests(vec![Bytes::copy_from_slice(bytes)]).message().await.unwrap_err().code()
        };
        assert_eq!(code(&[1, 0, 0, 0, 0]).await, Code::Unimplemented);
        assert_eq!(code(&[0, 0, 0, 0, 101]).await, Code::OutOfRange);
        assert_eq!(code(&[0, 0, 0, 0, 2, 0xff, 0xff]).await, Code::InvalidArgument);
        assert_eq!(code(&[0, 0, 0, 0, 2, 1]).await, Code::Internal);
    }
}
