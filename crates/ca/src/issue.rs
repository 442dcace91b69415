//! Writing certificates.

use crate::certificate::Fingerprint;
use crate::der::{self, Writer};
use crate::key::{KeyKind, PublicKey, SigningKeyPair};
use crate::time::Validity;
use model::TrustDomain;
use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

/// How much earlier than now certificates become valid: clocks differ.
pub const BACKDATE: Duration = Duration::from_secs(120);

// 2.5.29.x and 1.3.6.1.5.5.7.3.x
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const SUBJECT_KEY_ID: &[u8] = &[0x55, 0x1d, 0x0e];
const AUTHORITY_KEY_ID: &[u8] = &[0x55, 0x1d, 0x23];
const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
const ORGANIZATION_NAME: &[u8] = &[0x55, 0x04, 0x0a];

// The bits of a key usage, from the left, and how many of the byte's bits are not used.
const USAGE_DIGITAL_SIGNATURE: &[u8] = &[7, 0b1000_0000];
const USAGE_DIGITAL_SIGNATURE_AND_KEY_ENCIPHERMENT: &[u8] = &[5, 0b1010_0000];
const USAGE_SIGN_CERTIFICATES_AND_CRLS: &[u8] = &[1, 0b0000_0110];

/// A serial number: 158 random bits, positive, always of 20 bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Serial([u8; 20]);

impl Serial {
    /// Makes a serial number of random bytes, which the caller supplies.
    pub const fn from_random(mut bytes: [u8; 20]) -> Self {
        // Positive, and neither zero nor shorter than the others.
        bytes[0] = bytes[0] & 0x7f | 0x40;
        Self(bytes)
    }

    /// Returns the number.
    pub const fn as_bytes(&self) -> &[u8; 20] {
        &self.0
    }
}

impl fmt::Display for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Serial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom a certificate names as its subject or issuer.
pub(crate) enum Subject {
    /// Nobody: the alternative names say who it is.
    Empty,
    /// `O=…`
    Organisation(String),
    /// A `Name` as another certificate has it.
    Encoded(Vec<u8>),
}

/// A name that a certificate is good for.
pub(crate) enum Name {
    Uri(String),
    Dns(String),
    Ip(IpAddr),
}

/// Everything that a certificate for a workload or a server says.
pub(crate) struct Leaf<'a> {
    pub(crate) key: &'a PublicKey,
    pub(crate) names: &'a [Name],
    pub(crate) validity: Validity,
    pub(crate) serial: Serial,
    /// Whether it is for clients too.
    pub(crate) client: bool,
}

/// The signing side of a certificate.
pub(crate) struct Issuer<'a> {
    pub(crate) key: &'a SigningKeyPair,
    /// Its subject, encoded.
    pub(crate) name: &'a [u8],
    pub(crate) key_id: &'a [u8],
}

/// Returns a certificate for `leaf`.
pub(crate) fn leaf(issuer: &Issuer<'_>, leaf: &Leaf<'_>) -> Result<Vec<u8>, rcgen::Error> {
    let usage = match leaf.key.kind() {
        KeyKind::Rsa(_) => USAGE_DIGITAL_SIGNATURE_AND_KEY_ENCIPHERMENT,
        KeyKind::EcdsaP256 | KeyKind::EcdsaP384 => USAGE_DIGITAL_SIGNATURE,
    };
    let certificate = Certificate {
        serial: leaf.serial,
        issuer: &Subject::Encoded(issuer.name.to_vec()),
        subject: &Subject::Empty,
        validity: leaf.validity,
        spki: leaf.key.spki(),
    };
    certificate.sign(issuer.key, |extensions| {
        extension(extensions, KEY_USAGE, true, |value| value.element(der::BIT_STRING, usage));
        extension(extensions, EXTENDED_KEY_USAGE, false, |value| {
            value.nested(der::SEQUENCE, |purposes| {
                purposes.element(der::OID, SERVER_AUTH);
                if leaf.client {
                    purposes.element(der::OID, CLIENT_AUTH);
                }
            });
        });
        // CA is false by default, and defaults are not written.
        extension(extensions, BASIC_CONSTRAINTS, true, |value| value.element(der::SEQUENCE, &[]));
        key_id(extensions, &key_id_of(leaf.key.bits()));
        extension(extensions, AUTHORITY_KEY_ID, false, |value| {
            value.nested(der::SEQUENCE, |id| id.element(der::context(0), issuer.key_id));
        });
        // Critical, since there is no subject: RFC 5280, section 4.2.1.6.
        alternative_names(extensions, true, leaf.names);
    })
}

/// Returns a self-signed certificate of an authority.
pub(crate) fn root(
    key: &SigningKeyPair,
    trust_domain: &TrustDomain,
    validity: Validity,
    serial: Serial,
) -> Result<Vec<u8>, rcgen::Error> {
    let name = Subject::organisation(trust_domain);
    let spki = key.spki();
    let certificate = Certificate { serial, issuer: &name, subject: &name, validity, spki: &spki };
    certificate.sign(key, |extensions| {
        extension(extensions, KEY_USAGE, true, |value| {
            value.element(der::BIT_STRING, USAGE_SIGN_CERTIFICATES_AND_CRLS);
        });
        extension(extensions, BASIC_CONSTRAINTS, true, |value| {
            value.nested(der::SEQUENCE, |constraints| constraints.element(der::BOOLEAN, &[0xff]));
        });
        key_id(extensions, &key_id_of(key.bits()));
        alternative_names(extensions, false, &[Name::Uri(format!("spiffe://{trust_domain}"))]);
    })
}

/// Returns the identifier of a key: RFC 7093, section 2, method 1.
pub(crate) fn key_id_of(key: &[u8]) -> [u8; 20] {
    let mut id = [0; 20];
    id.copy_from_slice(&Fingerprint::of(key).as_bytes()[..20]);
    id
}

/// The parts that all certificates have.
struct Certificate<'a> {
    serial: Serial,
    issuer: &'a Subject,
    subject: &'a Subject,
    validity: Validity,
    spki: &'a [u8],
}

impl Certificate<'_> {
    fn sign(
        &self,
        key: &SigningKeyPair,
        extensions: impl FnOnce(&mut Writer),
    ) -> Result<Vec<u8>, rcgen::Error> {
        let algorithm = key.signature_algorithm();
        let mut message = Writer::with_capacity(1024);
        message.nested(der::SEQUENCE, |tbs| {
            // Version 3
            tbs.nested(der::context_constructed(0), |version| version.element(der::INTEGER, &[2]));
            tbs.positive(self.serial.as_bytes());
            tbs.element(der::SEQUENCE, algorithm.as_ref());
            name(tbs, self.issuer);
            tbs.nested(der::SEQUENCE, |validity| {
                validity.time(self.validity.not_before);
                validity.time(self.validity.not_after);
            });
            name(tbs, self.subject);
            tbs.raw(self.spki);
            tbs.nested(der::context_constructed(3), |outer| outer.nested(der::SEQUENCE, extensions));
        });
        let message = message.into_bytes();
        let signature = key.sign(&message)?;
        let mut certificate = Writer::with_capacity(message.len() + signature.len() + 32);
        certificate.nested(der::SEQUENCE, |certificate| {
            certificate.raw(&message);
            certificate.element(der::SEQUENCE, algorithm.as_ref());
            certificate.bit_string(&signature);
        });
        Ok(certificate.into_bytes())
    }
}

fn name(writer: &mut Writer, subject: &Subject) {
    match subject {
        Subject::Empty => writer.element(der::SEQUENCE, &[]),
        Subject::Encoded(name) => writer.raw(name),
        Subject::Organisation(organisation) => writer.nested(der::SEQUENCE, |name| {
            name.nested(der::SET, |set| {
                set.nested(der::SEQUENCE, |attribute| {
                    attribute.element(der::OID, ORGANIZATION_NAME);
                    attribute.element(der::UTF8_STRING, organisation.as_bytes());
                });
            });
        }),
    }
}

fn extension(extensions: &mut Writer, oid: &[u8], critical: bool, value: impl FnOnce(&mut Writer)) {
    extensions.nested(der::SEQUENCE, |extension| {
        extension.element(der::OID, oid);
        if critical {
            extension.element(der::BOOLEAN, &[0xff]);
        }
        extension.nested(der::OCTET_STRING, value);
    });
}

fn key_id(extensions: &mut Writer, id: &[u8]) {
    extension(extensions, SUBJECT_KEY_ID, false, |value| value.element(der::OCTET_STRING, id));
}

fn alternative_names(extensions: &mut Writer, critical: bool, names: &[Name]) {
    extension(extensions, SUBJECT_ALT_NAME, critical, |value| {
        value.nested(der::SEQUENCE, |list| {
            for name in names {
                match name {
                    Name::Dns(name) => list.element(der::context(2), name.as_bytes()),
                    Name::Uri(uri) => list.element(der::context(6), uri.as_bytes()),
                    Name::Ip(IpAddr::V4(ip)) => list.element(der::context(7), &ip.octets()),
                    Name::Ip(IpAddr::V6(ip)) => list.element(der::context(7), &ip.octets()),
                }
            }
        });
    });
}
