//! Objects whose newest form is not used: what is said about them, and what of them another process can go on with.

use index::{Held, Index, Reset, Settings, Sourced};
use k8s_api::object::{Object, ObjectKey as ApiKey};
use k8s_api::yaml::parse_documents;
use model::{Mesh, MeshConfig, WorkloadId};
use std::sync::Arc;

fn objects(yaml: &str) -> Vec<Sourced> {
    let documents = parse_documents(yaml, "test.yaml");
    documents.into_iter().map(|document| Sourced::from_api(document.unwrap().object)).collect()
}

fn empty() -> Index {
    Index::new(Settings { domain: "cluster.local".into(), cluster: "c1".into() })
}

/// An object of each kind that can be refused as a whole; `{}` is a good or a bad value.
const KINDS: [(&str, &str, &str); 6] = [
    (
        "{apiVersion: networking.istio.io/v1, kind: VirtualService, metadata: {name: x, namespace: app},
          spec: {hosts: [cart], http: [{timeout: VALUE, route: [{destination: {host: cart}}]}]}}",
        "1s",
        "-1s",
    ),
    (
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: x, namespace: app},
          spec: {host: cart, trafficPolicy: {connectionPool: {tcp: {connectTimeout: VALUE}}}}}",
        "1s",
        "soon",
    ),
    (
        "{apiVersion: networking.istio.io/v1, kind: Gateway, metadata: {name: x, namespace: app},
          spec: {servers: [{hosts: ['*'], port: {number: VALUE, name: http, protocol: HTTP}}]}}",
        "80",
        "99999",
    ),
    (
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: x, namespace: app},
          spec: {hosts: [a.test], resolution: STATIC, ports: [{number: VALUE, name: http, protocol: HTTP}],
          endpoints: [{address: 10.0.0.1}]}}",
        "80",
        "99999",
    ),
    (
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: x, namespace: app},
          spec: {address: VALUE}}",
        "10.0.0.1",
        "unix://relative",
    ),
    (
        "{apiVersion: networking.istio.io/v1, kind: Sidecar, metadata: {name: x, namespace: app},
          spec: {egress: [{hosts: [VALUE]}]}}",
        "./*",
        "nothing",
    ),
];

fn forms(kind: &(&str, &str, &str)) -> (Sourced, Sourced) {
    let form = |value| objects(&kind.0.replace("VALUE", value)).remove(0);
    (form(kind.1), form(kind.2))
}

fn held(index: &Index) -> Vec<Arc<Object>> {
    index.held().into_iter().map(|Held { object, .. }| object).collect()
}

/// Returns what the kinds above lead to.
fn described(index: &Index) -> String {
    let view = index.view();
    let mesh = Mesh::new(&view);
    let namespace = "app".into();
    let rules: Vec<_> = mesh.virtual_services().filter_map(|row| mesh.virtual_service(&row.key)).collect();
    let gateways: Vec<_> = mesh.gateways().filter_map(|row| mesh.gateway(&row.key)).collect();
    let policies: Vec<_> = mesh.destination_rules(&namespace).collect();
    let sidecars: Vec<_> = mesh.sidecars(&namespace).collect();
    let services: Vec<_> = view.registry().collect();
    let workload = mesh.workload(&WorkloadId { namespace, name: "x".into() });
    format!("{rules:?}\n{gateways:?}\n{policies:?}\n{sidecars:?}\n{services:?}\n{workload:?}")
}

/// Returns the manifest of an object as another process reads it.
fn reread(object: &Object) -> Arc<Object> {
    let manifest = object.manifest().expect("these kinds can be written");
    Arc::new(parse_documents(&manifest, "kept").remove(0).unwrap().object)
}

#[test]
fn a_refused_object_is_held_until_it_is_good_or_gone() {
    for kind in &KINDS {
        let (good, bad) = forms(kind);
        let key = good.object.key();
        let mut index = empty();
        index.apply(bad.clone());
        index.publish();
        assert_eq!(index.held(), [], "{key}: there is nothing to go back to");
        index.apply(good.clone());
        index.publish();
        assert_eq!(index.held(), [], "{key}");
        let before = described(&index);
        index.apply(bad.clone());
        assert!(index.publish().is_none(), "{key}: nothing has changed");
        assert_eq!(held(&index), std::slice::from_ref(&good.object), "{key}");
        assert_eq!(described(&index), before, "{key}");
        index.apply(good.clone());
        index.publish();
        assert_eq!(index.held(), [], "{key}");
        index.apply(bad);
        index.publish();
        index.delete(&key);
        index.publish();
        assert_eq!(index.held(), [], "{key}");
    }
}

#[test]
fn what_was_held_goes_on_in_another_process() {
    for kind in &KINDS {
        let (good, bad) = forms(kind);
        let key = good.object.key();
        let mut first = empty();
        first.reset(&Reset::Everything, vec![good.clone()]);
        first.publish();
        first.apply(bad.clone());
        first.publish();
        let kept: Vec<Arc<Object>> = held(&first).iter().map(|object| reread(object)).collect();

        let mut second = empty();
        second.restore(kept.clone());
        second.reset(&Reset::Everything, vec![bad.clone()]);
        second.forget_restored();
        second.publish();
        assert_eq!(described(&second), described(&first), "{key}");
        assert_eq!(held(&second), held(&first), "{key}");
        assert!(second.findings().values().all(|findings| findings.serves_last_good), "{key}");

        // One that has been put right meanwhile wins, and one that is gone stays gone.
        let mut third = empty();
        third.restore(kept.clone());
        third.reset(&Reset::Everything, vec![good.clone()]);
        third.publish();
        assert_eq!((described(&third), third.held()), (described(&first), Vec::new()), "{key}");
        let mut fourth = empty();
        fourth.restore(kept);
        fourth.reset(&Reset::Everything, Vec::new());
        fourth.forget_restored();
        fourth.apply(bad);
        fourth.publish();
        assert_eq!((fourth.held(), described(&fourth)), (Vec::new(), described(&empty())), "{key}");
    }
}

#[test]
fn what_is_held_is_looked_at_anew_with_the_mesh_configuration() {
    let entry =
        "{apiVersion: networking.istio.io/v1, kind: DestinationRule, metadata: {name: x, namespace: app},
      spec: {host: cart, trafficPolicy: {connectionPool: {tcp: {connectTimeout: VALUE}}}}}";
    let form = |value| objects(&entry.replace("VALUE", value)).remove(0);
    let mut index = empty();
    index.restore([form("1s").object]);
    index.apply(form("soon"));
    // The configuration often comes after the objects that depend on it.
    let config = MeshConfig::default();
    let mut context = translate::Context::new(&config, "c1");
    context.default_export_to.destination_rule = vec![".".into()];
    index.set_mesh_config(config, context);
    index.publish();
    let view = index.view();
    let mesh = Mesh::new(&view);
    let rule = mesh.destination_rules(&"app".into()).next().expect("the last good form");
    assert_ne!(rule.export_to, model::ExportTo::All);
    assert_eq!(held(&index), [form("1s").object]);
}

#[test]
fn a_held_service_entry_still_follows_its_workloads() {
    let entry =
        "{apiVersion: networking.istio.io/v1, kind: ServiceEntry, metadata: {name: x, namespace: app},
      spec: {hosts: [a.test], resolution: STATIC, ports: [{number: VALUE, name: http, protocol: HTTP}],
      workloadSelector: {labels: {app: a}}}}";
    let workload =
        "{apiVersion: networking.istio.io/v1, kind: WorkloadEntry, metadata: {name: w, namespace: app},
      spec: {address: 10.0.0.1, labels: {app: a}}}";
    let mut index = empty();
    index.apply(objects(&entry.replace("VALUE", "80")).remove(0));
    index.publish();
    index.apply(objects(&entry.replace("VALUE", "99999")).remove(0));
    index.apply(objects(workload).remove(0));
    index.publish();
    let view = index.view();
    let key = model::ServiceKey { host: "a.test".into(), namespace: "app".into() };
    assert_eq!(Mesh::new(&view).endpoints(&key).len(), 1);
}

#[test]
fn what_cannot_be_read_is_a_finding_and_keeps_what_is_known() {
    let (good, _) = forms(&KINDS[0]);
    let key = good.object.key();
    let unread = || Sourced::unread(key.clone(), "spec.hosts: expected a list");
    let said = |index: &Index| -> Vec<String> {
        let all = index.findings().values().flat_map(|findings| &findings.findings);
        all.map(|finding| finding.rejection.to_string()).collect()
    };
    let message = "VirtualService app/x: spec: cannot be read: spec.hosts: expected a list";
    let mut index = empty();
    index.apply(unread());
    index.publish();
    assert_eq!(said(&index), [message]);
    assert!(!index.findings().values().any(|findings| findings.serves_last_good));
    assert_eq!(index.held(), []);

    index.apply(good.clone());
    index.publish();
    assert_eq!(said(&index), [""; 0]);
    let before = described(&index);
    index.apply(unread());
    index.publish();
    assert_eq!((said(&index), held(&index)), (vec![message.to_owned()], vec![good.object.clone()]));
    assert_eq!(described(&index), before);
    index.reset(&Reset::Kind("VirtualService"), vec![good.clone()]);
    assert_eq!((said(&index), index.held()), (Vec::new(), Vec::new()), "it is as it was, and can be read");

    // Another process has nothing but what was kept.
    let mut second = empty();
    second.restore([reread(&good.object)]);
    second.apply(unread());
    second.publish();
    assert_eq!(described(&second), before);
    assert_eq!(held(&second), [good.object]);
    second.delete(&key);
    second.publish();
    assert_eq!((said(&second), second.held()), (Vec::new(), Vec::new()));
}

/// A Secret `tls` with these certificates.
fn secret(data: &[(&str, &str)]) -> Sourced {
    let data: String = data.iter().map(|(name, value)| format!("  {name}: {value:?}\n")).collect();
    objects(&format!(
        "apiVersion: v1\nkind: Secret\nmetadata: {{name: tls, namespace: app}}\nstringData:\n{data}"
    ))
    .remove(0)
}

/// A certificate that is good until the end of this year, and its key.
fn pair(year: i32) -> (String, String) {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::new(["a.test".to_owned()]).unwrap();
    params.not_after = rcgen::date_time_ymd(year, 12, 31);
    (params.self_signed(&key).unwrap().pem(), key.serialize_pem())
}

#[test]
fn a_certificate_that_is_broken_does_not_take_the_place_of_one_that_is_not() {
    const IN_2026: i64 = 1_780_000_000;
    let key = model::ObjectKey::new(model::Kind::Secret, "app", "tls");
    let ((cert, private), (_, foreign), (old, old_private)) = (pair(2040), pair(2040), pair(2020));
    let mut index = empty();
    index.set_time(IN_2026);
    index.apply(secret(&[("tls.crt", &cert), ("tls.key", &private), ("ca.crt", &cert)]));
    let served = |index: &mut Index| {
        index.publish();
        let view = index.view();
        let secret = Mesh::new(&view).secret(&key).unwrap().clone();
        (secret.certificate_chain.clone(), secret.ca.is_some(), index.findings().contains_key(&key))
    };
    let good = (cert.clone().into_bytes(), true, false);
    assert_eq!(served(&mut index), good);
    let kept = (good.0.clone(), true, true);
    for broken in [
        secret(&[("tls.crt", &cert), ("tls.key", &foreign), ("ca.crt", &cert)]),
        secret(&[("tls.crt", &cert), ("tls.key", &private), ("ca.crt", "rubbish")]),
        secret(&[("tls.crt", &cert), ("tls.key", &private), ("ca.crt", &cert), ("ca.crl", "rubbish")]),
        secret(&[("tls.crt", &old), ("tls.key", &old_private), ("ca.crt", &cert)]),
        secret(&[("tls.crt", "")]),
    ] {
        index.apply(broken);
        assert_eq!(served(&mut index), kept);
        assert!(index.findings()[&key].serves_last_good);
    }
    // What it can do without does not keep a new certificate back.
    let (next, next_private) = pair(2041);
    index.apply(secret(&[("tls.crt", &next), ("tls.key", &next_private), ("tls.ocsp-staple", "rubbish")]));
    assert_eq!(served(&mut index), (next.into_bytes(), false, true));

    // Where nothing was before, what is expired is served, and complained about: some clients do not mind.
    let mut index = empty();
    index.set_time(IN_2026);
    index.apply(secret(&[("tls.crt", &old), ("tls.key", &old_private)]));
    assert_eq!(served(&mut index), (old.into_bytes(), false, true));
    assert!(!index.findings()[&key].findings[0].is_error);
}

#[test]
fn authorities_in_config_maps_come_and_go_and_others_are_nobodys_business() {
    let key = model::ObjectKey::new(model::Kind::ConfigMap, "app", "roots");
    let map = |data: &str| {
        objects(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: roots, namespace: app}}\ndata: {{{data}}}"
        ))
        .remove(0)
    };
    let (cert, _) = pair(2040);
    let mut index = empty();
    index.apply(map("a: b"));
    index.publish();
    assert!(!index.view().has_secret(&key) && index.findings().is_empty());
    index.apply(map(&format!("ca.crt: {cert:?}")));
    index.publish();
    assert!(index.view().has_secret(&key));
    index.apply(map("ca.crt: rubbish"));
    index.publish();
    assert!(index.view().has_secret(&key) && index.findings()[&key].serves_last_good);
    index.apply(map("a: b"));
    index.publish();
    assert!(!index.view().has_secret(&key) && index.findings().is_empty());
}

#[test]
fn secrets_are_not_for_other_eyes() {
    let secret =
        "{apiVersion: v1, kind: Secret, metadata: {name: x, namespace: app}, type: kubernetes.io/tls}";
    let key: ApiKey = objects(secret)[0].object.key();
    let mut index = empty();
    index.apply(objects(secret).remove(0));
    index.apply(Sourced::unread(key, "no"));
    index.publish();
    assert_eq!(index.held(), []);
}
