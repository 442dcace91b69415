//! `/validate`: objects of the mesh.

use crate::Knowledge;
use crate::review::{Request, Response};
use translate::Verdict;

/// The annotation of the object by which it is found out whether this webhook is asked at all.
const SELF_CHECK: &str = "internal.istio.io/webhook-always-reject";
/// More are not told at once.
const MOST: usize = 20;

/// Answers a review of an object that is being created or changed.
pub(crate) fn validate(knowledge: &dyn Knowledge, request: &Request) -> Response {
    if !["CREATE", "UPDATE"].contains(&request.operation.as_str()) || !request.sub_resource.is_empty() {
        return Response::allow([]);
    }
    let object = &request.object;
    if !object["metadata"]["annotations"][SELF_CHECK].is_null() {
        return Response::refuse(format!("metadata.annotations[{SELF_CHECK}]: the webhook answers"));
    }
    let mut verdict = translate::validate(&knowledge.context(), &object.to_string());
    if verdict.is_unenforced && !knowledge.allows_unenforced_policies() {
        let reason = "Weft does not enforce this kind yet, and traffic would pass as if it were not there; \
                      weftd --allow-unenforced-policies accepts it";
        verdict.rejections.push(("kind".to_owned(), reason.to_owned()));
    }
    // What was accepted once must stay deletable: finalizers and labels change objects whose spec is bad by now.
    let is_old = request.operation == "UPDATE" && request.old_object["spec"] == object["spec"];
    if verdict.rejections.is_empty() || is_old {
        return Response::allow(warnings(&verdict));
    }
    Response::refuse(message(&verdict))
}

fn message(verdict: &Verdict) -> String {
    let all = &verdict.rejections;
    let mut lines: Vec<String> =
        all.iter().take(MOST).map(|(field, reason)| format!("{field}: {reason}")).collect();
    if all.len() > MOST {
        lines.push(format!("and {} more", all.len() - MOST));
    }
    lines.join("; ")
}

fn warnings(verdict: &Verdict) -> Vec<String> {
    let refused = verdict.rejections.iter();
    let refused = refused.map(|(field, reason)| format!("{field}: {reason} (the object was there before)"));
    let warned = verdict.warnings.iter().map(|(field, reason)| format!("{field}: {reason}"));
    let without_effect = verdict.has_no_effect.then(|| "Weft does not act on this kind yet".to_owned());
    refused.chain(warned).chain(without_effect).collect()
}
