//! ReferenceGrant: as far as it is about Gateways and Secrets, which is all that Weft asks it about.

use crate::report::{Report, Translated, object_key};
use k8s_api::reference_grant as api;
use model::reference_grant::Granted;
use model::{Kind, Namespace, ReferenceGrant};
use std::collections::BTreeSet;

/// The groups that Gateways are of: the Gateway API's and Istio's.
const GATEWAY_GROUPS: [&str; 2] = ["gateway.networking.k8s.io", "networking.istio.io"];

/// Translates a ReferenceGrant: all of it, or nothing if any part is refused. Grants between other kinds are passed over.
pub fn reference_grant(object: &api::ReferenceGrant) -> Translated<ReferenceGrant> {
    let key = object_key(Kind::ReferenceGrant, &object.metadata);
    let report = Report::new(key.clone());
    let at = report.at("spec");
    let mut gateways_in = BTreeSet::new();
    let at_from = at.field("from");
    for (index, from) in object.spec.from.iter().enumerate() {
        let at = at_from.index(index);
        if from.namespace.is_empty() {
            at.field("namespace").reject("is required");
        }
        if from.kind == "Gateway" && GATEWAY_GROUPS.contains(&from.group.as_str()) {
            gateways_in.insert(Namespace::new(from.namespace.as_str()));
        }
    }
    let mut secrets = Granted::Named(BTreeSet::new());
    for to in object.spec.to.iter().filter(|to| to.group.is_empty() && to.kind == "Secret") {
        match (to.name.as_deref().filter(|name| !name.is_empty()), &mut secrets) {
            (None, _) => secrets = Granted::All,
            (Some(name), Granted::Named(names)) => drop(names.insert(name.into())),
            (Some(_), Granted::All) => {}
        }
    }
    report.all_or_nothing(ReferenceGrant { key, gateways_in, secrets })
}
