//! Certificates in Secrets, and authorities in ConfigMaps.

use crate::parse::base64;
use crate::report::{At, Report, Translated, object_key};
use k8s_api::core as api;
use model::{Kind, Secret};

/// The suffix of the name of a Secret that holds the authorities apart from the certificate.
const CA_SUFFIX: &str = "-cacert";

/// Translates a Secret: certificate and key (`tls.crt` and `tls.key`, or `cert` and `key`), authorities (`ca.crt` or
/// `cacert`) and revocation list (`ca.crl` or `crl`). Whether the key belongs to the certificate is not checked.
///
/// A Secret with none of it is refused, which concerns nobody unless something refers to it.
pub fn secret(object: &api::Secret) -> Translated<Secret> {
    let key = object_key(Kind::Secret, &object.metadata);
    translate(key, &|name| object.value(name))
}

/// Translates a ConfigMap that holds authorities.
pub fn config_map(object: &api::ConfigMap) -> Translated<Secret> {
    let key = object_key(Kind::ConfigMap, &object.metadata);
    translate(key, &|name| match name {
        "ca.crt" | "cacert" | "ca.crl" | "crl" => object.data.get(name).map(String::as_bytes),
        _ => None,
    })
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
    let (certificate_chain, private_key) = match pair {
        Some((cert, key)) => match (checked(Some(cert), "CERTIFICATE"), checked(Some(key), "PRIVATE KEY")) {
            (Some(cert), Some(key)) => (cert, key),
            _ => Default::default(),
        },
        None => Default::default(),
    };
    let ca_bytes = checked(ca, "CERTIFICATE");
    if pair.is_none() && ca.is_none() {
        at.reject("holds no certificate: needs tls.crt and tls.key, cert and key, or ca.crt or cacert, and none empty");
    }
    let is_usable = !certificate_chain.is_empty() || ca_bytes.is_some();
    let value = Secret { key, certificate_chain, private_key, ca: ca_bytes, crl: checked(crl, "X509 CRL") };
    report.with(is_usable.then_some(value))
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
