//! Manifests: what is read, what is reported and where, what is refused.

use std::time::{Duration, Instant};

use k8s_api::object::Object;
use k8s_api::yaml::{Document, YamlError, YamlErrorKind, parse_documents, parse_value};
use proptest::prelude::{ProptestConfig, prop_assert, prop_assert_eq, proptest};

fn parse(text: &str) -> Vec<Result<Document, YamlError>> {
    parse_documents(text, "mesh.yaml")
}

fn one(text: &str) -> Document {
    let mut results = parse(text);
    assert_eq!(results.len(), 1, "{results:?}");
    results.remove(0).unwrap()
}

fn error(text: &str) -> YamlError {
    let mut results = parse(text);
    assert_eq!(results.len(), 1, "{results:?}");
    results.remove(0).unwrap_err()
}

fn warnings(text: &str) -> Vec<String> {
    one(text).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn documents_are_read_in_order_with_their_lines() {
    let text = "\
# a comment first
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: x}
---
# nothing here
---
apiVersion: v1
kind: Service
metadata:
  name: b
...
--- {apiVersion: apps/v1, kind: Deployment, metadata: {name: c}}
";
    let documents: Vec<_> = parse(text).into_iter().map(Result::unwrap).collect();
    let seen: Vec<_> = documents.iter().map(|d| (d.line, d.object.key().to_string())).collect();
    assert_eq!(
        seen,
        [
            (2, "VirtualService x/a".to_owned()),
            (8, "Service default/b".to_owned()),
            (13, "Deployment c".to_owned())
        ]
    );
    assert!(matches!(documents[2].object, Object::Other(_)));
    assert!(documents.iter().all(|d| d.warnings.is_empty()));
}

#[test]
fn bad_document_does_not_hide_the_others() {
    let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";
    for bad in [
        "a: [1, 2\n",
        "{{{\n",
        "\t: x\n",
        "'unclosed\n",
        "- a\n b: c\n",
        "*nowhere\n",
        "kind: X\n",
        "just text\n",
        "&a [*a]\n",
    ] {
        let results = parse(&format!("{good}---\n{bad}---\n{good}"));
        let verdicts: Vec<bool> = results.iter().map(Result::is_ok).collect();
        assert_eq!(verdicts, [true, false, true], "{bad:?}: {results:?}");
        let error = results[1].as_ref().unwrap_err();
        assert!((5..=7).contains(&error.line), "{bad:?}: {error}");
    }
}

#[test]
fn unknown_fields_are_reported_with_line_and_path() {
    let text = "\
apiVersion: networking.istio.io/v1beta1
kind: VirtualService
metadata:
  name: reviews
  lables: {}
spec:
  hosts: [reviews]
  http:
  - retires:
      attempts: 3
    match:
    - headers:
        x-user: {exact: a, sufix: b}
    route:
    - destination:
        host: reviews
        subzet: v1
status:
  anything: {goes: here}
extra: 1
";
    let message = "unknown field, it has no effect";
    assert_eq!(
        warnings(text),
        [
            format!("line 5: metadata.lables: {message}"),
            format!("line 9: spec.http[0].retires: {message}"),
            format!("line 13: spec.http[0].match[0].headers.x-user.sufix: {message}"),
            format!("line 17: spec.http[0].route[0].destination.subzet: {message}"),
            format!("line 20: extra: {message}"),
        ]
    );
}

#[test]
fn unknown_fields_of_kubernetes_kinds_are_those_the_api_server_does_not_know() {
    let text = "\
apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  terminationGracePeriodSeconds: 3
  volumes: []
  containers:
  - name: app
    image: x
    porst: []
";
    assert_eq!(warnings(text), ["line 10: spec.containers[0].porst: unknown field, it has no effect"]);
}

#[test]
fn value_of_the_wrong_type_names_line_object_and_field() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, namespace: x}
spec:
  http:
  - timeout: 5s
  - retries:
      attempts: many
";
    let error = error(text);
    assert_eq!(error.kind, YamlErrorKind::Field);
    assert_eq!(
        error.to_string(),
        "mesh.yaml:8: VirtualService x/a: spec.http[1].retries.attempts: invalid type: string \"many\", expected i32"
    );
}

#[test]
fn duplicate_keys_are_refused() {
    for text in ["a: 1\nb: 2\na: 3\n", "x:\n  8080: 1\n  '8080': 2\n"] {
        let error = error(text);
        assert_eq!(error.kind, YamlErrorKind::Syntax, "{error}");
        assert!(error.message.contains("duplicate"), "{error}");
    }
    assert_eq!(error("a: 1\nb: 2\na: 3\n").line, 3);
}

#[test]
fn lists_are_expanded_and_bad_items_reported_alone() {
    let text = "\
apiVersion: v1
kind: List
items:
- apiVersion: v1
  kind: Namespace
  metadata: {name: one}
- apiVersion: v1
  kind: Service
  metadata: {name: two}
  spec: {ports: 3}
- kind: Namespace
  metadata: {name: three}
- {apiVersion: v1, kind: PodList, items: [{metadata: {name: p}}]}
";
    let results = parse(text);
    assert_eq!(results.len(), 4);
    assert_eq!(results[0].as_ref().unwrap().line, 4);
    let field = results[1].as_ref().unwrap_err();
    assert_eq!((field.line, field.path.as_str()), (10, "spec.ports"));
    assert_eq!(results[2].as_ref().unwrap_err().kind, YamlErrorKind::NotAnObject);
    assert_eq!(results[3].as_ref().unwrap().object.key().to_string(), "Pod default/p");
    assert!(parse("apiVersion: v1\nkind: List\nitems:\n").is_empty());
}

#[test]
fn versions_that_do_not_exist_are_errors() {
    let error = error("apiVersion: networking.istio.io/v2\nkind: Gateway\nmetadata: {name: g}\n");
    assert_eq!(error.kind, YamlErrorKind::Version);
    for version in ["v1", "v1beta1", "v1alpha3"] {
        one(&format!("apiVersion: networking.istio.io/{version}\nkind: Gateway\nmetadata: {{name: g}}\n"));
    }
}

#[test]
fn mesh_kinds_that_are_not_read_are_reported() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n";
    assert_eq!(
        warnings(text),
        ["line 1: kind: security.istio.io/v1 AuthorizationPolicy is not read yet, it has no effect"]
    );
    assert!(one(text).is_unenforced);
}

#[test]
fn fields_of_kinds_that_are_not_read_are_checked_all_the_same() {
    let text = "apiVersion: telemetry.istio.io/v1\nkind: Telemetry\nmetadata: {name: t}\nspec:\n  tracing:\n  - samplng: 1\n";
    let expected = [
        "line 1: kind: telemetry.istio.io/v1 Telemetry is not read yet, it has no effect",
        "line 6: spec.tracing[0].samplng: unknown field, it has no effect",
    ];
    assert_eq!(warnings(text), expected);
    assert!(!one(text).is_unenforced);
    let error = error(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\nspec: {rules: x}\n",
    );
    assert_eq!((error.path.as_str(), error.kind), ("spec.rules", YamlErrorKind::Field));
    let other = "apiVersion: extensions.istio.io/v1\nkind: WasmPlugin\nmetadata: {name: w}\n";
    assert_eq!(self::error(other).kind, YamlErrorKind::Version);
}

#[test]
fn numbers_and_merge_keys_become_what_kubernetes_makes_of_them() {
    let text = "\
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: p, namespace: n, labels: {a: \"1\", <<: {b: c}}}
spec:
  portLevelMtls:
    8080: {mode: DISABLE}
";
    let Object::PeerAuthentication(policy) = one(text).object else { panic!("another kind") };
    assert!(policy.spec.port_level_mtls.contains_key("8080"));
    assert_eq!(policy.metadata.labels.unwrap().len(), 2);
}

#[test]
fn yes_and_off_are_booleans_only_where_one_is_wanted() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: off, labels: {mesh: on}}
spec:
  trafficPolicy:
    connectionPool: {http: {useClientProtocol: yes}}
    tls: {insecureSkipVerify: No}
    outlierDetection: {splitExternalLocalOriginErrors: ON}
";
    let Object::DestinationRule(rule) = one(text).object else { panic!("another kind") };
    assert_eq!(rule.metadata.name.as_deref(), Some("off"));
    assert_eq!(rule.metadata.labels.unwrap()["mesh"], "on");
    let policy = rule.spec.traffic_policy.unwrap();
    assert!(policy.connection_pool.unwrap().http.unwrap().use_client_protocol);
    assert_eq!(policy.tls.unwrap().insecure_skip_verify, Some(false));
    assert!(policy.outlier_detection.unwrap().split_external_local_origin_errors);
    let quoted = error("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {hostNetwork: 'yes'}\n");
    assert_eq!((quoted.line, quoted.path.as_str()), (4, "spec.hostNetwork"));
}

#[test]
#[expect(clippy::disallowed_methods, reason = "the test is about how long it takes")]
fn bombs_are_refused_quickly() {
    let laughs: String = ('b'..='j').fold("a: &a [x,x,x,x,x,x,x,x,x,x]\n".to_owned(), |text, name| {
        let previous = char::from(name as u8 - 1);
        let aliases = vec![format!("*{previous}"); 10].join(",");
        text + &format!("{name}: &{name} [{aliases}]\n")
    });
    let bombs = [
        ("flow sequences", "[".repeat(200_000)),
        ("flow mappings", "{a: ".repeat(125_000)),
        ("block nesting", (0..2_000).map(|depth| " ".repeat(depth) + "a:\n").collect()),
        ("dashes", "- ".repeat(100_000) + "x"),
        ("laughs", laughs),
        ("size", "a: ".to_owned() + &"x".repeat(10 << 20)),
        ("nodes", "a: [".to_owned() + &"1,".repeat(4 << 19) + "1]"),
        ("anchors", (0..200_000).map(|n| format!("a{n}: &a{n} x\n")).collect()),
    ];
    for (name, text) in bombs {
        let start = Instant::now();
        let results = parse_documents(&text, "bomb.yaml");
        let elapsed = start.elapsed();
        assert_eq!(results.len(), 1, "{name}");
        let error = results[0].as_ref().unwrap_err();
        assert!(elapsed < Duration::from_secs(20), "{name}: {elapsed:?}");
        assert!(error.message.len() < 300, "{name}: {error}");
        println!("{name}: {elapsed:?} {error}");
    }
}

#[test]
fn text_without_documents_is_empty() {
    for text in ["", "\n", "---\n---\n", "# nothing\n", "\u{feff}", "%YAML 1.2\n---\n"] {
        assert!(parse(text).is_empty(), "{text:?}");
    }
    one("\u{feff}%YAML 1.2\n---\r\napiVersion: v1\r\nkind: Namespace\r\nmetadata: {name: a}\r\n");
}

#[test]
fn document_markers_inside_of_scalars_follow_the_specification() {
    let text =
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: a}\ndata:\n  x: |\n    ---\n    ...\n    --- y\n";
    let Object::ConfigMap(map) = one(text).object else { panic!("another kind") };
    assert_eq!(map.data["x"], "---\n...\n--- y\n");
}

#[test]
fn null_is_absent() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: a, labels: null, creationTimestamp: null}
spec:
  hosts:
  http:
  - match: null
    timeout: ~
    headers: null
    route:
    - destination: {host: null, port: null}
      weight: null
status: null
";
    let document = one(text);
    assert!(document.warnings.is_empty());
    let Object::VirtualService(service) = document.object else { panic!("another kind") };
    assert_eq!(service.spec.http[0].route[0].destination.as_ref().unwrap().host, "");
    assert_eq!(service.status, None);
}

#[test]
fn secrets_are_read_and_never_printed() {
    let text = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\ndata: {tls.crt: aGVsbG8=, tls.key: d29ybGQ=}\nstringData: {tls.key: other}\n";
    let Object::Secret(secret) = one(text).object else { panic!("another kind") };
    assert_eq!(secret.value("tls.crt"), Some(&b"hello"[..]));
    assert_eq!(secret.value("tls.key"), Some(&b"other"[..]));
    let printed = format!("{secret:?}");
    assert!(
        !printed.contains("other") && !printed.contains("hello") && !printed.contains("104"),
        "{printed}"
    );
}

#[test]
fn single_values_are_read_with_warnings() {
    let parsed =
        parse_value::<k8s_api::destination_rule::TcpKeepalive>("probes: 3\nprobez: 4\n", "x").unwrap();
    assert_eq!(parsed.value.probes, Some(3));
    assert_eq!(parsed.warnings[0].path, "probez");
    assert_eq!(parsed.warnings[0].line, 2);
    assert_eq!(
        parse_value::<k8s_api::destination_rule::TcpKeepalive>("", "x").unwrap().value,
        Default::default()
    );
    assert_eq!(parse_value::<serde_json::Value>("a: 1\n---\nb: 2\n", "x").unwrap_err().line, 3);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_text_never_panics_and_neighbours_survive(noise in "[ -~\n\t]{0,200}") {
        let good = "apiVersion: v1\nkind: Namespace\nmetadata: {name: good}\n";
        let results = parse(&format!("{good}---\n{noise}\n---\n{good}"));
        prop_assert!(results.first().unwrap().is_ok());
        prop_assert!(results.last().unwrap().is_ok());
    }

    #[test]
    fn strings_come_back_as_they_were_written(value in "\\PC{0,40}") {
        let text = format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: a}}\ndata:\n  key: {}\n", serde_json::to_string(&value).unwrap());
        let Object::ConfigMap(map) = one(&text).object else { panic!("another kind") };
        prop_assert_eq!(&map.data["key"], &value);
    }
}
