//! PeerAuthentication.

use crate::context::Context;
use crate::parse::{port, selector};
use crate::report::{At, Report, Translated, meta};
use crate::virtual_service::unknown;
use k8s_api::peer_authentication as api;
use model::{Kind, MtlsMode, PeerAuthentication};

/// Translates a PeerAuthentication: all of it, or nothing if any part is refused.
pub fn peer_authentication(
    context: &Context,
    object: &api::PeerAuthentication,
) -> Translated<PeerAuthentication> {
    let meta = meta(Kind::PeerAuthentication, &object.metadata);
    let report = Report::new(meta.key.clone());
    let spec = &object.spec;
    let at = report.at("spec");

    let at_selector = at.field("selector");
    let given = spec.selector.as_ref().map(|given| &given.match_labels);
    if given.is_some_and(std::collections::BTreeMap::is_empty) {
        at_selector.warn("has no labels, so the policy is for the whole namespace");
    }
    let selector = given.map(|labels| selector(&at_selector.field("matchLabels"), labels));
    let selector = selector.filter(|selector| !selector.is_empty());
    if selector.is_some() && meta.key.namespace == context.root_namespace {
        at_selector.warn("has no effect in the root namespace: the policy is not used, as in Istio");
    }

    let at_ports = at.field("portLevelMtls");
    if !spec.port_level_mtls.is_empty() && selector.is_none() {
        at_ports.reject("needs a selector: ports are those of particular workloads");
    }
    let port_level = spec.port_level_mtls.iter().filter_map(|(number, mtls)| {
        let at = at_ports.key(number);
        let Some(number) = number.parse().ok().and_then(|number| port(number).ok()) else {
            at.reject(format!("{number:?} is not a port: it must be in the range 1..65535"));
            return None;
        };
        Some((number, mode(&at.field("mode"), mtls.mode.as_ref())))
    });
    let port_level = port_level.collect();
    let at_mtls = at.field("mtls");
    let mode = spec.mtls.as_ref().and_then(|mtls| mode(&at_mtls.field("mode"), mtls.mode.as_ref()));
    report.all_or_nothing(PeerAuthentication { meta, selector, mode, port_level })
}

fn mode(at: &At<'_>, given: Option<&api::MutualTlsMode>) -> Option<MtlsMode> {
    match given? {
        api::MutualTlsMode::Unset => None,
        api::MutualTlsMode::Disable => Some(MtlsMode::Disable),
        api::MutualTlsMode::Permissive => Some(MtlsMode::Permissive),
        api::MutualTlsMode::Strict => Some(MtlsMode::Strict),
        api::MutualTlsMode::Other(value) => {
            unknown(at, value, api::MutualTlsMode::VALUES);
            None
        }
    }
}
