//! Certificates in Secrets, and authorities in ConfigMaps.

use crate::credential::{self, Mistake};
use crate::parse::base64;
use crate::report::{At, Report, Translated, object_key};
use k8s_api::core as api;
use model::{Kind, Rejection, Secret};

/// The suffix of the name of a Secret that holds the authorities apart from the certificate.
const CA_SUFFIX: &str = "-cacert";

/// The key of an OCSP response.
const OCSP_STAPLE: &str = "tls.ocsp-staple";

/// Translates a Secret: certificate and key (`tls.crt` and `tls.key`, or `cert` and `key`), authorities (`ca.crt` or
/// `cacert`), revocation list (`ca.crl` or `crl`) and OCSP response (`tls.ocsp-staple`).
///
/// A Secret with none of it is refused, which concerns nobody unless something refers to it.
pub fn secret(object: &api::Secret) -> Translated<Secret> {
    let key = object_key(Kind::Secret, &object.metadata);
    translate(key, &|name| object.value(name))
}

/// Translates a ConfigMap that holds authorities. One that does not is nobody's business: nothing is said about it.
pub fn config_map(object: &api::ConfigMap) -> Translated<Secret> {
    let key = object_key(Kind::ConfigMap, &object.metadata);
    if !["ca.crt", "cacert"].iter().any(|name| object.data.contains_key(*name)) {
        return Report::new(key).with(None);
    }
    translate(key, &|name| match name {
        "ca.crt" | "cacert" | "ca.crl" | "crl" => object.data.get(name).map(String::as_bytes),
        _ => None,
    })
}

/// Returns whether what is rejected is a part of a Secret that it can do without.
pub fn is_optional(rejection: &Rejection) -> bool {
    rejection.field.ends_with("[tls.ocsp-staple]")
}

/// Returns the names of the Secrets that hold the authorities of a credential, in order of preference: `name-cacert`
/// for `name`, then the one that holds the certificate too.
pub fn ca_secret_names(credential: &str) -> [String; 2] {
    let stripped = credential.strip_suffix(CA_SUFFIX).unwrap_or(credential);
    [format!("{stripped}{CA_SUFFIX}"), stripped.to_owned()]
}

fn translate<'a>(key: model::ObjectKey, value: &dyn Fn(&str) -> Option<&'a [u8]>) -> Translated<Secret> {
    let report = Report::new(key.clone());
    let at = report.at("data");
    let present = |name| value(name).filter(|bytes| !bytes.is_empty());
    let pair = [("cert", "key"), ("tls.crt", "tls.key")]
        .into_iter()
        .find_map(|(cert, key)| Some(((cert, present(cert)?), (key, present(key)?))));
    let one_of = |names: [&'static str; 2]| names.into_iter().find_map(|name| Some((name, present(name)?)));
    let ca = one_of(["cacert", "ca.crt"]);
    let crl = one_of(["crl", "ca.crl"]);

    let checked = |found: Option<(&'static str, &[u8])>, label: &str| {
        let (name, bytes) = found?;
        let at = at.key(name);
        is_pem(&at, bytes, label).then(|| bytes.to_vec())
    };
    let pems = pair.and_then(|(cert, key)| {
        let pems = (checked(Some(cert), "CERTIFICATE"), checked(Some(key), "PRIVATE KEY"));
        let (chain, private_key) = pems.0.zip(pems.1)?;
        match credential::check(&chain, &private_key) {
            Ok(not_after) => return Some((chain, private_key, not_after)),
            Err(Mistake::Certificate(reason)) => at.key(cert.0).reject(reason),
            Err(Mistake::Key(reason)) => at.key(key.0).reject(reason),
        }
        None
    });
    let not_after = pems.as_ref().map(|(_, _, not_after)| *not_after);
    let (certificate_chain, private_key) =
        pems.map(|(chain, private_key, _)| (chain, private_key)).unwrap_or_default();
    let ca_bytes = checked(ca, "CERTIFICATE");
    if pair.is_none() && ca.is_none() {
        at.reject("holds no certificate: needs tls.crt and tls.key, cert and key, or ca.crt or cacert, and none empty");
    }
    let is_usable = !certificate_chain.is_empty() || ca_bytes.is_some();
    let ocsp_staple = present(OCSP_STAPLE).filter(|_| !certificate_chain.is_empty()).and_then(|bytes| {
        let at = at.key(OCSP_STAPLE);
        at.check(ocsp_response(bytes)).map(|()| bytes.to_vec())
    });
    let crl = checked(crl, "X509 CRL");
    let value = Secret { key, certificate_chain, private_key, ocsp_staple, ca: ca_bytes, crl, not_after };
    report.with(is_usable.then_some(value))
}

/// Checks that these bytes can be an OCSP response (RFC 6960) that says something: Envoy refuses a certificate whose
/// response is none. What the response says, and until when, is the business of those who read it.
fn ocsp_response(bytes: &[u8]) -> Result<(), &'static str> {
    /// OCSPResponse ::= SEQUENCE { responseStatus ENUMERATED, … }, which is 0 for success.
    const SUCCESSFUL: [u8; 3] = [0x0a, 1, 0];
    let content = der_sequence(bytes).ok_or("is not an OCSP response in DER")?;
    match content.starts_with(&SUCCESSFUL) {
        true => Ok(()),
        false => Err("is an OCSP response that says nothing: its status is not successful"),
    }
}

/// Returns the content of a DER sequence that takes all of `bytes`.
fn der_sequence(bytes: &[u8]) -> Option<&[u8]> {
    let (&[tag, first], rest) = bytes.split_first_chunk()?;
    if tag != 0x30 {
        return None;
    }
    let (len, content) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (len, content) = rest.split_at_checked(usize::from(first & 0x7f))?;
            let fits = (1..=4).contains(&len.len());
            fits.then(|| (len.iter().fold(0, |len, byte| len << 8 | usize::from(*byte)), content))?
        }
    };
    (content.len() == len).then_some(content)
}

/// Checks that there is at least one block whose label ends as asked, and that all such blocks are well formed.
fn is_pem(at: &At<'_>, bytes: &[u8], label: &str) -> bool {
    let Ok(text) = std::str::from_utf8(bytes) else {
        at.reject("is not PEM: it is not text");
        return false;
    };
    let mut blocks = 0;
    let mut rest = text;
    while let Some((_, begun)) = rest.split_once("-----BEGIN ") {
        let block = begun.split_once("-----").and_then(|(name, body)| {
            let (body, after) = body.split_once(&format!("-----END {name}-----"))?;
            Some((name, body, after))
        });
        let Some((name, body, after)) = block else {
            at.reject("is not PEM: a block has no END line");
            return false;
        };
        rest = after;
        if !name.ends_with(label) {
            continue;
        }
        let digits: String =
            body.lines().filter(|line| !line.contains(':')).flat_map(str::split_whitespace).collect();
        if digits.is_empty() || base64(&digits).is_err() {
            at.reject(format!("is not PEM: the {name} block is not base64"));
            return false;
        }
        blocks += 1;
    }
    if blocks == 0 {
        at.reject(format!("has no PEM block of the kind {label}"));
    }
    blocks > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_that_say_something_are_handed_out() {
        let short = [0x30, 3, 0x0a, 1, 0];
        let mut long = vec![0x30, 0x82, 1, 0, 0x0a, 1, 0];
        long.resize(4 + 256, 7);
        assert_eq!(ocsp_response(&short), Ok(()));
        assert_eq!(ocsp_response(&long), Ok(()));
        let nothing = Err("is an OCSP response that says nothing: its status is not successful");
        assert_eq!(ocsp_response(&[0x30, 3, 0x0a, 1, 3]), nothing);
        let none = Err("is not an OCSP response in DER");
        for bad in
            [&b""[..], b"0", b"-----BEGIN OCSP", &short[..4], &long[..200], &[0x30, 0x85, 0, 0, 0, 0, 1, 7]]
        {
            assert_eq!(ocsp_response(bad), none, "{bad:?}");
        }
    }
}
