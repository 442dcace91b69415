//! Reading the outer layers of responses without copying them.

use bytes::Buf;

/// One field of a message: its number and, for the length-delimited ones, what it holds.
pub(crate) struct Field<'a> {
    pub(crate) number: u32,
    pub(crate) bytes: &'a [u8],
}

/// The length-delimited fields of an encoded message, in order; others are passed over. Ends at the first thing that
/// is no field.
pub(crate) struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    pub(crate) fn of(message: &'a [u8]) -> Self {
        Self(message)
    }

    fn varint(&mut self) -> Option<u64> {
        prost::encoding::decode_varint(&mut self.0).ok()
    }

    fn take(&mut self, len: usize) -> Option<&'a [u8]> {
        let bytes = self.0.get(..len)?;
        self.0.advance(len);
        Some(bytes)
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        loop {
            if self.0.is_empty() {
                return None;
            }
            let key = self.varint()?;
            let number = u32::try_from(key >> 3).ok()?;
            match key & 7 {
                0 => drop(self.varint()?),
                1 => drop(self.take(8)?),
                2 => {
                    let len = usize::try_from(self.varint()?).ok()?;
                    return Some(Field { number, bytes: self.take(len)? });
                }
                5 => drop(self.take(4)?),
                _ => return None,
            }
        }
    }
}

/// A delta response, as far as a client needs it.
#[derive(Default)]
pub(crate) struct Response<'a> {
    pub(crate) type_url: &'a str,
    pub(crate) nonce: &'a str,
    /// The encoded `Resource` envelopes.
    pub(crate) resources: Vec<&'a [u8]>,
    pub(crate) removed: Vec<&'a str>,
}

impl<'a> Response<'a> {
    pub(crate) fn read(message: &'a [u8]) -> Self {
        let mut response = Self::default();
        for field in Fields::of(message) {
            match field.number {
                2 => response.resources.push(field.bytes),
                4 => response.type_url = text(field.bytes),
                5 => response.nonce = text(field.bytes),
                6 => response.removed.push(text(field.bytes)),
                _ => {}
            }
        }
        response
    }
}

/// Returns the name in an encoded `Resource` envelope, and the message in it.
pub(crate) fn envelope(resource: &[u8]) -> (&str, &[u8]) {
    let (mut name, mut message) = ("", &[][..]);
    for field in Fields::of(resource) {
        match field.number {
            3 => name = text(field.bytes),
            2 => {
                let value = Fields::of(field.bytes).find(|field| field.number == 2);
                message = value.map_or(&[], |field| field.bytes);
            }
            _ => {}
        }
    }
    (name, message)
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use prost::Message;
    use proto::envoy::service::discovery::v3::{DeltaDiscoveryResponse, Resource};
    use proto::google::protobuf::Any;

    #[test]
    fn responses_are_read_as_prost_writes_them() {
        let resource = Resource {
            name: "a".to_owned(),
            version: "1".to_owned(),
            resource: Some(Any { type_url: "t".to_owned(), value: vec![1, 2, 3].into() }),
            ..Resource::default()
        };
        let response = DeltaDiscoveryResponse {
            system_version_info: "v".to_owned(),
            resources: vec![resource.clone(), resource],
            type_url: "t".to_owned(),
            nonce: "n".to_owned(),
            removed_resources: vec!["b".to_owned()],
            ..DeltaDiscoveryResponse::default()
        };
        let message = response.encode_to_vec();
        let read = Response::read(&message);
        assert_eq!((read.type_url, read.nonce, read.removed), ("t", "n", vec!["b"]));
        assert_eq!(read.resources.len(), 2);
        assert_eq!(envelope(read.resources[1]), ("a", &[1, 2, 3][..]));
    }

    #[test]
    fn what_is_no_message_has_no_fields() {
        assert_eq!(Fields::of(&[0xff, 0xff]).count(), 0);
        assert_eq!(Fields::of(&[0x0a, 0x7f, 1]).count(), 0);
    }
}
