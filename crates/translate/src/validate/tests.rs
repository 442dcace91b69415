//! Verdicts on whole manifests.

use super::*;
use model::MeshConfig;

fn context() -> Context {
    Context::new(&MeshConfig::default(), "Kubernetes")
}

fn rejections(manifest: &str) -> Vec<String> {
    let verdict = validate(&context(), manifest);
    verdict.rejections.into_iter().map(|(field, reason)| format!("{field}: {reason}")).collect()
}

#[test]
fn what_translate_refuses_is_refused_with_its_words() {
    let manifest = "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\nmetadata: {name: w}\nspec: {address: 'unix://x'}\n";
    let object =
        k8s_api::yaml::parse_value::<k8s_api::workload_entry::WorkloadEntry>(manifest, "x").unwrap().value;
    let direct = crate::workload_entry(&object).rejections;
    assert_eq!(direct.len(), 1);
    assert_eq!(rejections(manifest), [format!("{}: {}", direct[0].field, direct[0].reason)]);
}

#[test]
fn unknown_fields_and_other_than_one_object_are_refused() {
    let manifest =
        "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\nspec: {tracng: []}\n";
    assert_eq!(rejections(manifest), ["spec.tracng: unknown field, it has no effect"]);
    assert_eq!(rejections(""), [": holds 0 objects, where one is expected"]);
}

#[test]
fn policies_that_nothing_enforces_say_so() {
    let manifest = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    let verdict = validate(&context(), manifest);
    assert!(verdict.rejections.is_empty() && verdict.has_no_effect && verdict.is_unenforced);
}

#[test]
fn a_deny_rule_of_http_alone_is_warned_of() {
    let policy = |operation: &str| {
        format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec:\n  action: DENY\n  rules:\n  - to:\n    - operation: {operation}\n"
        )
    };
    assert_eq!(validate(&context(), &policy("{methods: [GET]}")).warnings.len(), 1);
    assert_eq!(validate(&context(), &policy("{methods: [GET], ports: ['80']}")).warnings, []);
}

#[test]
fn paths_with_templates_are_checked() {
    for (path, valid) in [
        ("/a/{*}/b", true),
        ("/a/{**}/b", true),
        ("/a/{**}/{*}", false),
        ("/a/{x}", false),
        ("/a*/{*}", false),
        ("/a/*", true),
    ] {
        let manifest = format!(
            "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: a}}\nspec:\n  rules:\n  - to:\n    - operation: {{paths: ['{path}']}}\n"
        );
        assert_eq!(rejections(&manifest).is_empty(), valid, "{path}");
    }
}
