//! Whether an object should be accepted: what `translate` says of it, unknown fields, and kinds that are only checked.
//!
//! What is refused here is exactly what would be refused in use, with the same words, so that admission, files and the
//! command line agree.

mod authorization_policy;
mod envoy_filter;
mod extension;
mod request_authentication;
mod targets;
mod telemetry;
mod workload_group;

use crate::context::Context;
use crate::report::Translated;
use k8s_api::object::Object;
use k8s_api::yaml::{Document, YamlError, parse_documents, parse_value};
use model::Rejection;
use serde::de::DeserializeOwned;

/// Whether an object should be accepted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Why it must be refused: the field and the reason. It is accepted if there are none.
    pub rejections: Vec<(String, String)>,
    /// What its author should know, although it is accepted.
    pub warnings: Vec<(String, String)>,
    /// Whether it is of a kind that Weft does not act on yet.
    pub has_no_effect: bool,
    /// Whether it is a security policy that Weft does not enforce yet.
    pub is_unenforced: bool,
}

impl Verdict {
    fn reject(field: &str, reason: &str) -> Self {
        Self { rejections: vec![(field.to_owned(), reason.to_owned())], ..Self::default() }
    }

    fn add<T>(&mut self, translated: Translated<T>) {
        let finding = |Rejection { field, reason, .. }: Rejection| (field, reason);
        self.rejections.extend(translated.rejections.into_iter().map(finding));
        self.warnings.extend(translated.warnings.into_iter().map(finding));
    }
}

/// Judges the one object in a manifest.
pub fn validate(context: &Context, manifest: &str) -> Verdict {
    match parse_documents(manifest, "manifest").as_slice() {
        [Ok(document)] => judge(context, document, manifest),
        [Err(error)] => Verdict::reject(&error.path, &error.message),
        documents => {
            Verdict::reject("", &format!("holds {} objects, where one is expected", documents.len()))
        }
    }
}

fn judge(context: &Context, document: &Document, manifest: &str) -> Verdict {
    let mut verdict = Verdict { is_unenforced: document.is_unenforced, ..Verdict::default() };
    for warning in &document.warnings {
        if warning.path == "kind" {
            verdict.has_no_effect = true;
        } else {
            // Whoever writes a field expects something of it.
            verdict.rejections.push((warning.path.clone(), warning.message.clone()));
        }
    }
    match &document.object {
        Object::VirtualService(object) => verdict.add(crate::virtual_service(context, object)),
        Object::DestinationRule(object) => verdict.add(crate::destination_rule(context, object)),
        Object::Gateway(object) => verdict.add(crate::gateway(context, object)),
        Object::ServiceEntry(object) => verdict.add(crate::service_entry(context, object)),
        Object::WorkloadEntry(object) => verdict.add(crate::workload_entry(object)),
        Object::Sidecar(object) => verdict.add(crate::sidecar(context, object)),
        Object::PeerAuthentication(object) => verdict.add(crate::peer_authentication(context, object)),
        Object::ReferenceGrant(object) => verdict.add(crate::reference_grant(object)),
        Object::Other(_) => unread(&document.kind, manifest, &mut verdict),
        _ => {}
    }
    verdict
}

/// Judges kinds that have no place among the objects of a mesh yet.
fn unread(kind: &str, manifest: &str, verdict: &mut Verdict) {
    match kind {
        "AuthorizationPolicy" => check(manifest, verdict, authorization_policy::check),
        "RequestAuthentication" => check(manifest, verdict, request_authentication::check),
        "Telemetry" => check(manifest, verdict, telemetry::check),
        "EnvoyFilter" => check(manifest, verdict, envoy_filter::check),
        "WorkloadGroup" => check(manifest, verdict, workload_group::check),
        "ProxyConfig" => check(manifest, verdict, workload_group::check_proxy_config),
        "WasmPlugin" => check(manifest, verdict, extension::check_plugin),
        "TrafficExtension" => check(manifest, verdict, extension::check_extension),
        _ => {}
    }
}

fn check<K: DeserializeOwned>(manifest: &str, verdict: &mut Verdict, check: fn(&K) -> Translated<()>) {
    match parse_value::<K>(manifest, "manifest") {
        Ok(parsed) => verdict.add(check(&parsed.value)),
        // It was read once before, so this does not happen.
        Err(YamlError { path, message, .. }) => verdict.rejections.push((path, message)),
    }
}

#[cfg(test)]
mod tests;
