//! As much of the distinguished encoding rules as certificates and requests need.
//!
//! Requests come from strangers, and all that we want of one is its key: so they are walked, element by element, and
//! what we do not need is not looked into. Certificates are written here so that an issuer's name is repeated byte by
//! byte: a name that is read and written again may come out different, and then no chain is built.

use crate::time::{Civil, UnixTime};

pub(crate) const BOOLEAN: u8 = 0x01;
pub(crate) const INTEGER: u8 = 0x02;
pub(crate) const BIT_STRING: u8 = 0x03;
pub(crate) const OCTET_STRING: u8 = 0x04;
pub(crate) const UTF8_STRING: u8 = 0x0c;
pub(crate) const UTC_TIME: u8 = 0x17;
pub(crate) const GENERALIZED_TIME: u8 = 0x18;
pub(crate) const SEQUENCE: u8 = 0x30;
pub(crate) const SET: u8 = 0x31;
pub(crate) const OID: u8 = 0x06;

/// Returns the tag of `[number]` around a constructed value.
pub(crate) const fn context_constructed(number: u8) -> u8 {
    0xa0 | number
}

/// Returns the tag of an implicit `[number]` in place of a primitive one.
pub(crate) const fn context(number: u8) -> u8 {
    0x80 | number
}

/// The bytes are not in the distinguished encoding, or not what was expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not in the distinguished encoding (DER), or not of the expected structure")]
pub(crate) struct Malformed;

/// One tag, length and value.
#[derive(Clone, Copy)]
pub(crate) struct Element<'a> {
    pub(crate) tag: u8,
    pub(crate) content: &'a [u8],
    /// The element with its tag and length.
    pub(crate) whole: &'a [u8],
}

/// Reads elements one after the other.
pub(crate) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Returns the next element, whatever it is.
    pub(crate) fn any(&mut self) -> Result<Element<'a>, Malformed> {
        let (&tag, after_tag) = self.rest.split_first().ok_or(Malformed)?;
        // Tags of more than one byte appear in nothing that we read.
        if tag & 0x1f == 0x1f {
            return Err(Malformed);
        }
        let (&first, after_first) = after_tag.split_first().ok_or(Malformed)?;
        let (length, body) = if first < 0x80 {
            (usize::from(first), after_first)
        } else {
            let count = usize::from(first & 0x7f);
            if count == 0 || count > 4 || after_first.len() < count {
                return Err(Malformed);
            }
            let (digits, body) = after_first.split_at(count);
            let length = digits.iter().fold(0_usize, |length, digit| length << 8 | usize::from(*digit));
            let shortest = digits[0] != 0 && length >= 0x80;
            if !shortest {
                return Err(Malformed);
            }
            (length, body)
        };
        if body.len() < length {
            return Err(Malformed);
        }
        let (content, rest) = body.split_at(length);
        let whole = &self.rest[..self.rest.len() - rest.len()];
        self.rest = rest;
        Ok(Element { tag, content, whole })
    }

    /// Returns the next element, which must have `tag`.
    pub(crate) fn expect(&mut self, tag: u8) -> Result<Element<'a>, Malformed> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err(Malformed) }
    }

    /// Returns the bytes of a bit string that has a whole number of them.
    pub(crate) fn bit_string(&mut self) -> Result<&'a [u8], Malformed> {
        match self.expect(BIT_STRING)?.content.split_first() {
            Some((0, bytes)) => Ok(bytes),
            _ => Err(Malformed),
        }
    }

    /// Returns the digits of a positive integer, without the zero that says that it is positive.
    pub(crate) fn positive(&mut self) -> Result<&'a [u8], Malformed> {
        let content = self.expect(INTEGER)?.content;
        match content {
            [] | [0] => Err(Malformed),
            [0, next, ..] if *next < 0x80 => Err(Malformed),
            [0, digits @ ..] => Ok(digits),
            [first, ..] if *first >= 0x80 => Err(Malformed),
            digits => Ok(digits),
        }
    }

    /// Checks that nothing is left.
    pub(crate) fn finish(self) -> Result<(), Malformed> {
        if self.rest.is_empty() { Ok(()) } else { Err(Malformed) }
    }
}

/// What is signed, by which algorithm, and the signature: the shape of certificates, requests and revocation lists.
pub(crate) struct Signed<'a> {
    pub(crate) message: Element<'a>,
    /// The content of the `AlgorithmIdentifier`.
    pub(crate) algorithm: &'a [u8],
    pub(crate) signature: &'a [u8],
}

impl<'a> Signed<'a> {
    pub(crate) fn parse(der: &'a [u8]) -> Result<Self, Malformed> {
        let mut outer = Reader::new(der);
        let mut parts = Reader::new(outer.expect(SEQUENCE)?.content);
        outer.finish()?;
        let message = parts.expect(SEQUENCE)?;
        let algorithm = parts.expect(SEQUENCE)?.content;
        let signature = parts.bit_string()?;
        parts.finish()?;
        Ok(Self { message, algorithm, signature })
    }
}

/// Writes elements one after the other.
#[derive(Default)]
pub(crate) struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    pub(crate) fn with_capacity(capacity: usize) -> Self {
        Self { bytes: Vec::with_capacity(capacity) }
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// Writes bytes that are elements already.
    pub(crate) fn raw(&mut self, elements: &[u8]) {
        self.bytes.extend_from_slice(elements);
    }

    /// Writes an element.
    pub(crate) fn element(&mut self, tag: u8, content: &[u8]) {
        self.nested(tag, |writer| writer.raw(content));
    }

    /// Writes an element whose content is what `write` writes.
    pub(crate) fn nested(&mut self, tag: u8, write: impl FnOnce(&mut Self)) {
        self.bytes.push(tag);
        let start = self.bytes.len();
        write(self);
        let length = self.bytes.len() - start;
        // The length goes in front of what was written: nothing written here is long enough for that to matter.
        if let Ok(short @ 0..0x80) = u8::try_from(length) {
            self.bytes.insert(start, short);
        } else {
            let digits = length.to_be_bytes();
            let leading = digits.iter().take_while(|digit| **digit == 0).count();
            let digits = &digits[leading..];
            let count = u8::try_from(digits.len()).unwrap_or(u8::MAX);
            self.bytes.splice(start..start, std::iter::once(0x80 | count).chain(digits.iter().copied()));
        }
    }

    pub(crate) fn bit_string(&mut self, bytes: &[u8]) {
        self.nested(BIT_STRING, |writer| {
            writer.raw(&[0]);
            writer.raw(bytes);
        });
    }

    /// Writes a positive integer from its digits.
    pub(crate) fn positive(&mut self, digits: &[u8]) {
        let leading = digits.iter().take_while(|digit| **digit == 0).count();
        let digits = &digits[leading..];
        self.nested(INTEGER, |writer| {
            if digits.first().is_none_or(|first| *first >= 0x80) {
                writer.raw(&[0]);
            }
            writer.raw(digits);
        });
    }

    /// Writes a moment as certificates do: with two digits of the year until 2049, and four after.
    pub(crate) fn time(&mut self, time: UnixTime) {
        let Civil { year, month, day, hour, minute, second } = Civil::from(time);
        let rest = format!("{month:02}{day:02}{hour:02}{minute:02}{second:02}Z");
        if (1950..2050).contains(&year) {
            self.element(UTC_TIME, format!("{:02}{rest}", year % 100).as_bytes());
        } else {
            self.element(GENERALIZED_TIME, format!("{year:04}{rest}").as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn written(write: impl FnOnce(&mut Writer)) -> Vec<u8> {
        let mut writer = Writer::default();
        write(&mut writer);
        writer.into_bytes()
    }

    #[test]
    fn lengths_of_all_sizes_read_back() {
        for length in [0, 1, 127, 128, 255, 256, 65_535, 65_536] {
            let content = vec![7; length];
            let der = written(|writer| writer.element(OCTET_STRING, &content));
            let mut reader = Reader::new(&der);
            let element = reader.expect(OCTET_STRING).unwrap();
            assert_eq!((element.content, element.whole), (content.as_slice(), der.as_slice()));
            reader.finish().unwrap();
        }
    }

    #[test]
    fn integers_are_positive_and_shortest() {
        for (digits, encoded) in [
            (&[1_u8][..], &[2_u8, 1, 1][..]),
            (&[0, 0, 1], &[2, 1, 1]),
            (&[0x80], &[2, 2, 0, 0x80]),
            (&[0], &[2, 1, 0]),
        ] {
            assert_eq!(written(|writer| writer.positive(digits)), encoded);
        }
        for refused in [&[2_u8, 0][..], &[2, 1, 0], &[2, 1, 0x80], &[2, 2, 0, 1]] {
            assert!(Reader::new(refused).positive().is_err(), "{refused:?}");
        }
    }

    #[test]
    fn what_is_not_distinguished_is_refused() {
        for refused in [
            &[][..],
            &[0x30],
            &[0x30, 1],
            &[0x30, 0x80, 0, 0],          // indefinite
            &[0x30, 0x81, 1, 0],          // not the shortest length
            &[0x30, 0x82, 0, 0x80],       // leading zero
            &[0x30, 0x85, 0, 0, 0, 0, 1], // more digits than anything needs
            &[0x1f, 0x81, 1, 0],          // long tag
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
        ] {
            assert!(Reader::new(refused).any().is_err(), "{refused:?}");
        }
        assert!(Reader::new(&[3, 2, 1, 0]).bit_string().is_err());
        assert!(Reader::new(&[3, 0]).bit_string().is_err());
    }

    #[test]
    fn years_beyond_2049_have_four_digits() {
        let text = |seconds| {
            let der = written(|writer| writer.time(UnixTime::from_seconds(seconds)));
            (der[0], String::from_utf8(der[2..].to_vec()).unwrap())
        };
        assert_eq!(text(2_524_607_999), (UTC_TIME, "491231235959Z".to_owned()));
        assert_eq!(text(2_524_608_000), (GENERALIZED_TIME, "20500101000000Z".to_owned()));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut reader = Reader::new(&bytes);
            while reader.any().is_ok() {}
            let _ = Signed::parse(&bytes);
            let _ = Reader::new(&bytes).positive();
            let _ = Reader::new(&bytes).bit_string();
        }
    }
}
