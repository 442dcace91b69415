//! What is refused, and under which field.
//!
//! Each case is the `spec` of an object (with `{…}` for what the case is not about) and the fields of its rejections
//! in order. A case without fields is accepted: it stands beside the ones that are nearly so.

mod destination_rule;
mod gateway;
mod others;
mod service_entry;
mod sidecar;
mod virtual_service;

use crate::common::{Outcome, context, objects, translate_object};

/// A `spec`, and the fields that are refused.
type Case<'a> = (&'a str, &'a [&'a str]);

/// Checks all cases of a kind, also that what is refused has no value.
fn check(api: &str, kind: &str, cases: &[Case<'_>]) {
    for (spec, fields) in cases {
        let outcome = translate(api, kind, spec);
        let refused: Vec<&str> =
            outcome.rejections.iter().map(|rejection| rejection.field.as_str()).collect();
        assert_eq!(refused, *fields, "{} {spec}: {:#?}", outcome.object, outcome.rejections);
        assert_eq!(outcome.value.is_none(), !fields.is_empty(), "{kind} {spec}");
    }
}

fn translate(api: &str, kind: &str, spec: &str) -> Outcome {
    let yaml =
        format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n");
    let [object] = objects(&yaml).try_into().unwrap_or_else(|_| panic!("{spec} is not one object"));
    translate_object(&context(), &object)
}

/// Returns the warned fields of an object that is accepted.
fn warned(api: &str, kind: &str, spec: &str) -> Vec<String> {
    let outcome = translate(api, kind, spec);
    assert_eq!(outcome.rejections, [], "{spec}");
    outcome.warnings.into_iter().map(|warning| warning.field).collect()
}
