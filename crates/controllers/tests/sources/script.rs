//! What is told, step by step.

use crate::fake::{CONFIG_MAPS, Fake, NODES, SECRETS, SERVICES, VIRTUAL_SERVICES};
use crate::harness::{Harness, config, kind_of, object};
use controllers::{RunError, SOURCES, States, run};
use index::Change;
use k8s_api::object::Object;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use tokio::sync::{mpsc, watch};

const NOTHING: [&str; 0] = [];

fn with_services(names: &[&str]) -> Fake {
    let fake = Fake::new();
    names.iter().for_each(|name| fake.put(SERVICES, object(name, 1)));
    fake
}

#[tokio::test(start_paused = true)]
async fn first_list_is_one_reset_then_events_follow() {
    let fake = with_services(&["a", "b", "c"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    assert_eq!(mesh.told("Service"), ["reset a@1 b@1 c@1", "synced"]);

    fake.put(SERVICES, object("b", 2));
    fake.put(SERVICES, object("d", 1));
    fake.delete(SERVICES, "shop", "a");
    mesh.wait(1).await;
    assert_eq!(mesh.told("Service"), ["apply b@2", "apply d@1", "delete a"]);
    let state = mesh.state("Service");
    assert_eq!((state.is_synced, state.objects, state.lists, state.errors), (true, 3, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn every_source_is_synced_once() {
    let fake = with_services(&["a"]);
    let mesh = Harness::start(&fake);
    mesh.wait(300).await;
    let changes = mesh.drain();
    let mut synced: Vec<&str> = Vec::new();
    for change in &changes {
        match change {
            Change::Synced(name) => synced.push(name),
            change => {
                assert!(!synced.contains(&kind_of(change).as_str()), "{change:?} after its source was synced")
            }
        }
    }
    assert_eq!(synced.len(), SOURCES.len());
    assert_eq!(BTreeSet::from_iter(synced), BTreeSet::from_iter(SOURCES.iter().copied()));
    assert_eq!(changes.len(), 2 * SOURCES.len(), "each tells of its list, and that it is synced");
}

#[tokio::test(start_paused = true)]
async fn list_that_breaks_off_is_thrown_away() {
    let fake = with_services(&["a", "b", "c"]);
    fake.refuse_page(SERVICES, 500);
    let mesh = Harness::start(&fake);
    mesh.wait(2).await;
    assert_eq!(mesh.told("Service"), ["reset a@1 b@1 c@1", "synced"]);
    let state = mesh.state("Service");
    assert_eq!((state.lists, state.errors), (1, 1));
    assert!(state.last_error.unwrap().message.contains("no list for you"));
}

#[tokio::test(start_paused = true)]
async fn expired_watch_deletes_only_what_the_next_list_lacks() {
    let fake = with_services(&["a", "b", "c"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Service");

    fake.refuse_lists(SERVICES, Some(500));
    fake.end_watches(SERVICES);
    fake.delete(SERVICES, "shop", "a");
    fake.compact(SERVICES);
    mesh.wait(60).await;
    assert_eq!(mesh.told("Service"), NOTHING);
    assert_eq!(mesh.state("Service").objects, 3);

    fake.refuse_lists(SERVICES, None);
    mesh.wait(11).await;
    assert_eq!(mesh.told("Service"), ["reset b@1 c@1"]);
    assert_eq!(mesh.state("Service").lists, 2);
}

#[tokio::test(start_paused = true)]
async fn restart_of_the_server_is_not_noticed_by_the_mesh() {
    let fake = with_services(&["a", "b", "c"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Service");
    for round in 2..22 {
        fake.set_down(true);
        mesh.wait(7).await;
        fake.put(SERVICES, object("b", round));
        assert_eq!(mesh.told("Service"), NOTHING);
        fake.set_down(false);
        mesh.wait(11).await;
        assert_eq!(mesh.told("Service"), [format!("apply b@{round}")]);
    }
    assert_eq!(mesh.state("Service").lists, 1);
}

#[tokio::test(start_paused = true)]
async fn half_open_watch_is_noticed_in_45_seconds() {
    let fake = with_services(&["a"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Service");
    fake.mute_watches(SERVICES);
    fake.put(SERVICES, object("a", 2));
    mesh.wait(45).await;
    assert_eq!(mesh.told("Service"), ["apply a@2"]);
    assert_eq!(mesh.state("Service").lists, 1);
}

#[tokio::test(start_paused = true)]
async fn event_that_cannot_be_read_is_made_good_by_a_list() {
    let fake = with_services(&["a", "b"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Service");
    fake.put_garbled(SERVICES, object("a", 2));
    fake.put(SERVICES, object("b", 2));
    mesh.wait(2).await;
    assert_eq!(mesh.told("Service"), ["reset a@2 b@2"]);
}

#[tokio::test(start_paused = true)]
async fn watch_from_a_version_that_the_server_has_not_reached_becomes_a_list() {
    let fake = with_services(&["a", "b"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Service");
    fake.restore_backup(SERVICES, vec![object("a", 0)]);
    mesh.wait(2).await;
    assert_eq!(mesh.told("Service"), ["reset a@0"]);
    fake.put(SERVICES, object("c", 1));
    mesh.wait(1).await;
    assert_eq!(mesh.told("Service"), ["apply c@1"]);
}

#[tokio::test(start_paused = true)]
async fn watches_that_always_fail_do_not_make_a_storm_of_lists() {
    let fake = with_services(&["a"]);
    fake.refuse_watches(SERVICES, Some(500));
    let mesh = Harness::start(&fake);
    mesh.wait(600).await;
    let lists = mesh.state("Service").lists;
    assert!((60..=150).contains(&lists), "{lists} lists in 600 seconds");
}

#[tokio::test(start_paused = true)]
async fn missing_crd_counts_as_synced_and_is_picked_up_when_installed() {
    let fake = Fake::new();
    fake.serve(VIRTUAL_SERVICES, false, false);
    let mesh = Harness::start(&fake);
    mesh.wait(300).await;
    assert_eq!(mesh.told("VirtualService"), ["reset", "synced"]);
    let state = mesh.state("VirtualService");
    assert_eq!((state.is_absent, state.is_synced), (true, true));

    fake.serve(VIRTUAL_SERVICES, true, true);
    fake.put(VIRTUAL_SERVICES, object("a", 1));
    mesh.wait(11).await;
    assert_eq!(mesh.told("VirtualService"), ["reset a@1"]);
    assert!(!mesh.state("VirtualService").is_absent);
}

#[tokio::test(start_paused = true)]
async fn missing_core_kind_is_never_synced() {
    let fake = Fake::new();
    fake.serve(SERVICES, false, true);
    let mesh = Harness::start(&fake);
    mesh.wait(300).await;
    assert_eq!(mesh.told("Service"), NOTHING);
    assert!(mesh.state("Service").last_error.unwrap().message.contains("404"));
}

#[tokio::test(start_paused = true)]
async fn kind_that_is_not_served_any_more_keeps_its_objects_while_its_crd_exists() {
    let fake = Fake::new();
    fake.put(VIRTUAL_SERVICES, object("a", 1));
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["reset a@1", "synced"]);
    fake.serve(VIRTUAL_SERVICES, false, true);
    mesh.wait(300).await;
    assert_eq!(mesh.told("VirtualService"), NOTHING);
    assert!(!mesh.state("VirtualService").is_absent);

    fake.serve(VIRTUAL_SERVICES, false, false);
    mesh.wait(11).await;
    assert_eq!(mesh.told("VirtualService"), ["reset"]);
    mesh.wait(300).await;
    assert_eq!(mesh.told("VirtualService"), NOTHING);
    assert!(mesh.state("VirtualService").is_absent);
}

#[tokio::test(start_paused = true)]
async fn undecodable_object_keeps_its_last_good_form() {
    let broken = |name: &str| {
        let mut object = object(name, 9);
        object["spec"] = json!({ "hosts": { "not": "a list" } });
        object
    };
    let fake = Fake::new();
    fake.put(VIRTUAL_SERVICES, object("a", 1));
    fake.put(VIRTUAL_SERVICES, broken("never-good"));
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["reset a@1 never-good@?!", "synced"]);

    fake.put(VIRTUAL_SERVICES, broken("a"));
    fake.put(VIRTUAL_SERVICES, object("b", 1));
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["apply a@1!", "apply b@1"], "the form is old, and that is said");
    assert_eq!(mesh.state("VirtualService").objects, 2);
    let undecodable = mesh.state("VirtualService").undecodable;
    let names: Vec<&String> = undecodable.keys().collect();
    assert_eq!(names, ["VirtualService shop/a", "VirtualService shop/never-good"]);
    assert!(undecodable["VirtualService shop/a"].contains("Invalid type map"), "{undecodable:?}");

    fake.delete(VIRTUAL_SERVICES, "shop", "never-good");
    fake.fail_watches(VIRTUAL_SERVICES, 500);
    mesh.wait(1).await;
    let told = mesh.told("VirtualService");
    assert_eq!(told, ["delete never-good", "reset a@1! b@1"], "a list keeps it too");
    assert_eq!(mesh.state("VirtualService").undecodable.len(), 1);

    fake.put(VIRTUAL_SERVICES, object("a", 3));
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["apply a@3"]);
    assert!(mesh.state("VirtualService").undecodable.is_empty());

    fake.put(VIRTUAL_SERVICES, broken("a"));
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["apply a@3!"]);
    fake.put(VIRTUAL_SERVICES, object("a", 3));
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["apply a@3"], "as it was, and good");

    fake.put(VIRTUAL_SERVICES, broken("a"));
    fake.delete(VIRTUAL_SERVICES, "shop", "a");
    mesh.wait(1).await;
    assert_eq!(mesh.told("VirtualService"), ["apply a@3!", "delete a"]);
    assert!(mesh.state("VirtualService").undecodable.is_empty());
}

#[tokio::test(start_paused = true)]
async fn change_that_no_mesh_looks_at_is_not_told() {
    let node = |zone: &str, beat: u32| {
        json!({
            "metadata": { "name": "n1", "labels": { "topology.kubernetes.io/zone": zone } },
            "status": { "conditions": [{ "type": "Ready", "status": "True", "lastHeartbeatTime": beat.to_string() }] },
        })
    };
    let fake = Fake::new();
    fake.put(NODES, node("a", 1));
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.told("Node");
    fake.put(NODES, node("a", 2));
    fake.put(NODES, node("b", 2));
    mesh.wait(1).await;
    assert_eq!(mesh.told("Node"), ["apply n1@"]);
}

fn secret(name: &str, v: u32, type_: &str, keys: &[&str]) -> Value {
    let mut secret = object(name, v);
    secret["type"] = json!(type_);
    secret["data"] = keys.iter().map(|key| ((*key).to_owned(), json!("eHh4"))).collect();
    secret
}

#[tokio::test(start_paused = true)]
async fn only_secrets_with_certificates_are_told() {
    let fake = Fake::new();
    fake.put(SECRETS, secret("a-tls", 1, "kubernetes.io/tls", &["tls.crt", "tls.key", "password"]));
    fake.put(SECRETS, secret("b-opaque", 1, "Opaque", &["cert", "key"]));
    fake.put(SECRETS, secret("c-cacert", 1, "Opaque", &["cacert"]));
    fake.put(SECRETS, secret("d-password", 1, "Opaque", &["password", "key"]));
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    let changes = mesh.drain();
    let secrets = changes.iter().find_map(|change| match change {
        Change::Reset(_, objects) if kind_of(change) == "Secret" => Some(objects),
        _ => None,
    });
    let kept: Vec<(String, Vec<String>)> = secrets
        .unwrap()
        .iter()
        .map(|sourced| match &*sourced.object {
            Object::Secret(secret) => (sourced.object.key().name, secret.data.keys().cloned().collect()),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [
        ("a-tls", vec!["tls.crt", "tls.key"]),
        ("b-opaque", vec!["cert", "key"]),
        ("c-cacert", vec!["cacert"]),
    ];
    let expected =
        expected.map(|(name, keys)| (name.to_owned(), keys.into_iter().map(str::to_owned).collect()));
    assert_eq!(kept, expected);

    fake.put(SECRETS, secret("b-opaque", 2, "Opaque", &["password"]));
    fake.put(SECRETS, secret("d-password", 2, "Opaque", &["password", "key"]));
    fake.delete(SECRETS, "shop", "d-password");
    mesh.wait(1).await;
    assert_eq!(mesh.told("Secret"), ["delete b-opaque"]);
    let asked: Vec<String> =
        fake.requests().into_iter().filter(|request| request.starts_with(SECRETS)).collect();
    assert!(asked.iter().all(|request| request.contains("helm.sh%2Frelease.v1")), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn forbidden_secrets_do_not_block_for_ever() {
    let fake = Fake::new();
    fake.put(SECRETS, secret("a", 1, "kubernetes.io/tls", &["tls.crt", "tls.key"]));
    fake.refuse_lists(SECRETS, Some(403));
    fake.refuse_lists(SERVICES, Some(403));
    let mesh = Harness::start(&fake);
    mesh.wait(10).await;
    assert_eq!(mesh.told("Secret"), NOTHING, "an API server that has just started says so too");
    mesh.wait(20).await;
    assert_eq!(mesh.told("Secret"), ["reset", "synced"]);
    assert!(mesh.state("Secret").last_error.unwrap().message.contains("403"));
    assert_eq!(mesh.told("Service"), NOTHING, "without services there is no mesh");

    fake.refuse_lists(SECRETS, None);
    mesh.wait(11).await;
    assert_eq!(mesh.told("Secret"), ["reset a@1"]);
    fake.refuse_lists(SECRETS, Some(403));
    fake.fail_watches(SECRETS, 403);
    mesh.wait(300).await;
    assert_eq!(mesh.told("Secret"), NOTHING, "what is known stays in use");
}

fn config_map(name: &str, mesh: &str) -> Value {
    json!({ "metadata": { "namespace": "istio-system", "name": name }, "data": { "mesh": mesh } })
}

#[tokio::test(start_paused = true)]
async fn config_map_is_merged_over_the_base_and_the_last_good_one_stays() {
    let fake = Fake::new();
    fake.put(CONFIG_MAPS, config_map("other", "trustDomain: wrong"));
    let base = json!({ "trustDomain": "base", "ingressClass": "base" });
    let mesh = Harness::start_with(&fake, base);
    mesh.wait(1).await;
    let fields = |mesh: &Harness| {
        let configs = mesh.mesh_configs().into_iter();
        configs
            .map(|config| format!("{} {}", config.trust_domain, config.ingress_class))
            .collect::<Vec<String>>()
    };
    assert_eq!(fields(&mesh), ["base base"]);
    assert_eq!(mesh.told("MeshConfig"), ["synced"]);

    fake.put(CONFIG_MAPS, config_map("istio", "trustDomain: mine"));
    mesh.wait(1).await;
    assert_eq!(fields(&mesh), ["mine base"]);

    for broken in ["trustDomain: [", "trustDomain: [5]"] {
        fake.put(CONFIG_MAPS, config_map("istio", broken));
        mesh.wait(1).await;
        assert_eq!(fields(&mesh), NOTHING);
        let undecodable = mesh.state("MeshConfig").undecodable;
        assert!(undecodable["ConfigMap istio-system/istio"].contains("key mesh"), "{undecodable:?}");
    }
    fake.fail_watches(CONFIG_MAPS, 500);
    mesh.wait(1).await;
    assert_eq!(fields(&mesh), NOTHING, "not after a list either");

    fake.put(CONFIG_MAPS, config_map("istio", "# the same\ntrustDomain: mine"));
    mesh.wait(1).await;
    assert_eq!(fields(&mesh), NOTHING);
    assert!(mesh.state("MeshConfig").undecodable.is_empty());

    fake.put(CONFIG_MAPS, config_map("istio", "ingressClass: mine"));
    fake.delete(CONFIG_MAPS, "istio-system", "istio");
    mesh.wait(1).await;
    assert_eq!(fields(&mesh), ["base mine", "base base"]);
}

#[tokio::test(start_paused = true)]
async fn broken_config_map_at_the_start_leaves_the_base() {
    let fake = Fake::new();
    fake.put(CONFIG_MAPS, config_map("istio", "trustDomain: ["));
    let mesh = Harness::start_with(&fake, json!({ "trustDomain": "base" }));
    mesh.wait(1).await;
    let configs: Vec<String> = mesh.mesh_configs().into_iter().map(|config| config.trust_domain).collect();
    assert_eq!(configs, ["base"]);
    assert_eq!(mesh.told("MeshConfig"), ["synced"]);
    assert_eq!(mesh.state("MeshConfig").undecodable.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn bad_base_is_refused() {
    let (sender, _receiver) = mpsc::channel(1);
    let states = watch::channel(States::new()).0;
    let config = config(json!({ "trustDomain": 5 }));
    let error = run(Fake::new().client(), config, sender, states).await.unwrap_err();
    assert!(matches!(error, RunError::BaseMeshConfig(_)), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn ends_when_nobody_listens() {
    let fake = with_services(&["a"]);
    let mesh = Harness::start(&fake);
    mesh.wait(1).await;
    mesh.stop().await.unwrap();
    let requests = fake.requests().len();
    tokio::time::sleep(std::time::Duration::from_secs(300)).await;
    assert_eq!(fake.requests().len(), requests, "no source is left behind");
}
