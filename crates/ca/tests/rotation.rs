//! One root takes the place of another: each step on its own, and all of them under random events.

mod common;

use ca::rotation::{
    Blocked, BundleLog, Evidence, LeafReport, Phase, ProxyReport, RetireWhen, Rotation, Settings,
    StoredError, Waiting,
};
use ca::{BundleHash, CaCertificate, Fingerprint, TrustBundle, UnixTime};
use common::{Ca, DAY, HOUR, NOW, YEAR};
use std::time::Duration;

const SETTINGS: Settings = Settings { leaf_lifetime: DAY, replica_lag: HOUR, retire: RetireWhen::Replaced };

/// Two roots and what a control plane knows.
struct World {
    old: CaCertificate,
    new: CaCertificate,
    bundles: BundleLog,
    complete_since: UnixTime,
}

impl World {
    fn new() -> Self {
        let (old, new) = (Ca::root("old").certificate(), Ca::root("new").certificate());
        let mut bundles = BundleLog::new();
        for roots in [vec![&old], vec![&old, &new], vec![&new]] {
            bundles.note(&roots.into_iter().cloned().collect());
        }
        Self { old, new, bundles, complete_since: NOW.before(10 * DAY) }
    }

    fn hash(&self, roots: &[&CaCertificate]) -> BundleHash {
        roots.iter().map(|root| (*root).clone()).collect::<TrustBundle>().hash()
    }

    fn proxy(
        &self,
        name: &str,
        trusts: &[&CaCertificate],
        leaf: &CaCertificate,
        seen: UnixTime,
    ) -> ProxyReport {
        ProxyReport {
            name: name.into(),
            acked: Some(self.hash(trusts)),
            unanswered: Vec::new(),
            leaves: vec![LeafReport { root: leaf.fingerprint(), not_after: seen.after(DAY) }],
            last_seen: seen,
        }
    }

    fn evidence<'a>(&'a self, proxies: &'a [ProxyReport]) -> Evidence<'a> {
        Evidence { proxies, complete_since: self.complete_since, bundles: &self.bundles, replicas: &[] }
    }
}

fn trusted(rotation: &Rotation) -> Vec<Fingerprint> {
    rotation.bundle(&TrustBundle::new()).iter().map(|root| root.fingerprint()).collect()
}

#[test]
fn the_way_forward_waits_for_trust_then_for_leaves() {
    let world = World::new();
    let (old, new) = (&world.old, &world.new);
    let rotation = Rotation::stable(old.clone(), NOW.before(YEAR)).begin(new.clone(), NOW).unwrap();
    assert_eq!((rotation.phase(), rotation.signer()), (Phase::Distributing, old.fingerprint()));
    assert_eq!(trusted(&rotation), [old.fingerprint(), new.fingerprint()]);

    // One proxy lags behind, another one is gone for so long that it does not count.
    let later = NOW.after(2 * HOUR);
    let gone = world.proxy("gone", &[old], old, later.before(DAY + HOUR));
    let slow =
        [world.proxy("a", &[old, new], old, later), world.proxy("b", &[old], old, later), gone.clone()];
    let progress = rotation.next(&world.evidence(&slow), &SETTINGS, later).unwrap_err();
    assert_eq!(progress.waiting, Some(Waiting::Trust(new.fingerprint())));
    assert_eq!((progress.counted, progress.ready, progress.silent), (2, 1, 1));
    assert_eq!(progress.blockers.len(), 1);
    assert_eq!((&*progress.blockers[0].proxy, progress.blockers[0].reason), ("b", Blocked::OtherBundle));

    let ready = [world.proxy("a", &[old, new], old, later), world.proxy("b", &[old, new], old, later), gone];
    let early = rotation.next(&world.evidence(&ready), &SETTINGS, NOW.after(HOUR / 2)).unwrap_err();
    assert_eq!(early.not_before, Some(NOW.after(HOUR)), "another replica may not trust the new root yet");
    let rotation = rotation.next(&world.evidence(&ready), &SETTINGS, later).unwrap();
    assert_eq!((rotation.phase(), rotation.signer()), (Phase::Switched, new.fingerprint()));
    assert_eq!(trusted(&rotation), [old.fingerprint(), new.fingerprint()]);

    let later = later.after(2 * HOUR);
    let mixed = [world.proxy("a", &[old, new], new, later), world.proxy("b", &[old, new], old, later)];
    let progress = rotation.next(&world.evidence(&mixed), &SETTINGS, later).unwrap_err();
    assert_eq!(progress.waiting, Some(Waiting::Leaves(old.fingerprint())));
    assert_eq!(progress.blockers[0].reason, Blocked::OldCertificate);
    let replaced = [world.proxy("a", &[old, new], new, later), world.proxy("b", &[old, new], new, later)];
    let patient = Settings { retire: RetireWhen::Expired, ..SETTINGS };
    let progress = rotation.next(&world.evidence(&replaced), &patient, later).unwrap_err();
    let expired = NOW.after(2 * HOUR + HOUR + DAY + Duration::from_secs(1));
    assert_eq!(progress.not_before, Some(expired), "others than proxies may have certificates");
    assert_eq!(rotation.next(&world.evidence(&[]), &patient, expired).unwrap().phase(), Phase::Retiring);
    let rotation = rotation.next(&world.evidence(&replaced), &SETTINGS, later).unwrap();
    assert_eq!((rotation.phase(), trusted(&rotation)), (Phase::Retiring, vec![new.fingerprint()]));

    let later = later.after(2 * HOUR);
    let progress = rotation.next(&world.evidence(&replaced), &SETTINGS, later).unwrap_err();
    assert_eq!(progress.waiting, Some(Waiting::Dropped(old.fingerprint())));
    let dropped = [world.proxy("a", &[new], new, later), world.proxy("b", &[new], new, later)];
    let rotation = rotation.next(&world.evidence(&dropped), &SETTINGS, later).unwrap();
    assert_eq!((rotation.phase(), rotation.signer()), (Phase::Stable, new.fingerprint()));
    assert_eq!(trusted(&rotation), [new.fingerprint()]);
    let done = rotation.next(&world.evidence(&dropped), &SETTINGS, later.after(YEAR)).unwrap_err();
    assert!(!done.is_rotating());
    assert_eq!(rotation.overrides(), []);
}

#[test]
fn a_proxy_counts_with_every_bundle_that_it_may_use() {
    let world = World::new();
    let (old, new) = (&world.old, &world.new);
    let rotation = Rotation::stable(old.clone(), NOW).begin(new.clone(), NOW).unwrap();
    let later = NOW.after(2 * HOUR);
    let reason = |proxy: ProxyReport| {
        let progress = rotation.next(&world.evidence(&[proxy]), &SETTINGS, later).unwrap_err();
        progress.blockers[0].reason
    };
    let good = world.proxy("a", &[old, new], old, later);
    assert_eq!(reason(ProxyReport { acked: None, ..good.clone() }), Blocked::NoBundle);
    let unanswered = vec![world.hash(&[old])];
    assert_eq!(reason(ProxyReport { unanswered, ..good.clone() }), Blocked::OtherBundle);
    let unknown = world.hash(&[&Ca::root("other").certificate()]);
    assert_eq!(reason(ProxyReport { acked: Some(unknown), ..good.clone() }), Blocked::UnknownBundle);
    let more = ProxyReport { unanswered: vec![world.hash(&[new])], ..good };
    assert!(rotation.next(&world.evidence(&[more]), &SETTINGS, later).is_ok());
}

#[test]
fn a_restart_makes_proxies_unknown_for_the_life_of_a_certificate() {
    let mut world = World::new();
    world.complete_since = NOW;
    let rotation = Rotation::stable(world.old.clone(), NOW).begin(world.new.clone(), NOW).unwrap();
    let progress = rotation.next(&world.evidence(&[]), &SETTINGS, NOW.after(DAY)).unwrap_err();
    assert_eq!(progress.not_before, Some(NOW.after(DAY + Duration::from_secs(1))));
    assert!(rotation.next(&world.evidence(&[]), &SETTINGS, NOW.after(DAY + HOUR)).is_ok());
}

#[test]
fn every_position_can_be_rolled_back() {
    let world = World::new();
    let (old, new) = (&world.old, &world.new);
    let distributing = Rotation::stable(old.clone(), NOW).begin(new.clone(), NOW).unwrap();
    let mut now = NOW.after(2 * HOUR);
    let both = |now| [world.proxy("a", &[old, new], old, now)];
    let switched = distributing.next(&world.evidence(&both(now)), &SETTINGS, now).unwrap();
    now = now.after(2 * HOUR);
    let replaced = [world.proxy("a", &[old, new], new, now)];
    let retiring = switched.next(&world.evidence(&replaced), &SETTINGS, now).unwrap();

    // The new root has not signed anything: it is withdrawn at once.
    let back = distributing.roll_back().unwrap();
    let back = back.next(&world.evidence(&both(now)), &SETTINGS, now).unwrap();
    assert_eq!((back.phase(), trusted(&back)), (Phase::Withdrawing, vec![old.fingerprint()]));
    let resumed = back.resume(now).unwrap();
    assert_eq!((resumed.phase(), trusted(&resumed).len()), (Phase::Distributing, 2));
    let after = now.after(2 * HOUR);
    let stale = [world.proxy("a", &[old], old, after)];
    assert!(resumed.next(&world.evidence(&stale), &SETTINGS, after).is_err(), "the new root is new again");

    // Everybody has always trusted the old root: it signs at once, whatever was acknowledged.
    let back = switched.roll_back().unwrap();
    let unknown = [ProxyReport { acked: None, ..both(now)[0].clone() }];
    let back = back.next(&world.evidence(&unknown), &SETTINGS, now).unwrap();
    assert_eq!((back.phase(), back.signer()), (Phase::Distributing, old.fingerprint()));
    let after = now.after(2 * HOUR);
    let progress = back
        .next(&world.evidence(&[world.proxy("a", &[old, new], new, after)]), &SETTINGS, after)
        .unwrap_err();
    assert_eq!(progress.waiting, Some(Waiting::Leaves(new.fingerprint())));

    // Somebody may have dropped the old root: it signs only when all trust it again.
    let back = retiring.roll_back().unwrap();
    let back = back.next(&world.evidence(&[]), &SETTINGS, now).unwrap();
    assert_eq!((back.phase(), back.signer()), (Phase::Switched, new.fingerprint()));
    let after = now.after(2 * HOUR);
    let dropped = [world.proxy("a", &[new], new, after)];
    let progress = back.next(&world.evidence(&dropped), &SETTINGS, after).unwrap_err();
    assert_eq!(progress.waiting, Some(Waiting::Trust(old.fingerprint())));
    let back = back.next(&world.evidence(&both(after)), &SETTINGS, after).unwrap();
    let after = after.after(2 * HOUR);
    let back = back.next(&world.evidence(&both(after)), &SETTINGS, after).unwrap();
    assert_eq!(back.phase(), Phase::Withdrawing);
    let after = after.after(2 * HOUR);
    let back = back.next(&world.evidence(&[world.proxy("a", &[old], old, after)]), &SETTINGS, after).unwrap();
    assert_eq!((back.phase(), back.signer()), (Phase::Stable, old.fingerprint()));
}

#[test]
fn an_operator_can_order_a_step_and_is_remembered() {
    let world = World::new();
    let stuck = [world.proxy("stuck", &[&world.old], &world.old, NOW)];
    let evidence = world.evidence(&stuck);
    let mut rotation = Rotation::stable(world.old.clone(), NOW);
    assert!(rotation.force("jane", &evidence, &SETTINGS, NOW).is_err());
    rotation = rotation.begin(world.new.clone(), NOW).unwrap();
    for phase in [Phase::Switched, Phase::Retiring, Phase::Stable] {
        assert!(rotation.next(&evidence, &SETTINGS, NOW).is_err());
        rotation = rotation.force("jane: incident 7", &evidence, &SETTINGS, NOW).unwrap();
        assert_eq!(rotation.phase(), phase);
    }
    assert_eq!(rotation.overrides().len(), 3);
    let first = &rotation.overrides()[0];
    assert_eq!((first.at, first.by.as_str()), (NOW, "jane: incident 7"));
    assert!(first.skipped.contains("stuck has not acknowledged the present roots"), "{}", first.skipped);

    // What was skipped is not forgotten: the certificates of the root that was dropped are still about.
    let again = rotation.begin(world.old.clone(), NOW).unwrap().roll_back().unwrap();
    let later = NOW.after(2 * HOUR);
    let progress = again.progress(&world.evidence(&[]), &SETTINGS, later);
    assert_eq!(progress.waiting, Some(Waiting::Leaves(world.old.fingerprint())));
}

#[test]
fn reports_list_a_few_of_many_blockers() {
    let world = World::new();
    let rotation = Rotation::stable(world.old.clone(), NOW).begin(world.new.clone(), NOW).unwrap();
    let later = NOW.after(2 * HOUR);
    let many: Vec<ProxyReport> = (0..1_000_u16)
        .map(|number| {
            let seen = later.before(Duration::from_secs(number.into()));
            world.proxy(&format!("proxy-{number}"), &[&world.old], &world.old, seen)
        })
        .collect();
    let progress = rotation.progress(&world.evidence(&many), &SETTINGS, later);
    assert_eq!((progress.counted, progress.ready), (1_000, 0));
    assert_eq!((progress.blockers.len(), progress.more_blockers), (20, 980));
    assert_eq!(&*progress.blockers[0].proxy, "proxy-999", "the longest silent first");
    let text = progress.to_string();
    assert!(text.starts_with("distributing both roots, waiting until every proxy trusts "), "{text}");
    assert!(text.ends_with("; and 980 more") && text.len() < 2_000, "{text}");
}

#[test]
fn a_rotation_begins_once_and_with_a_good_root() {
    let world = World::new();
    let stable = Rotation::stable(world.old.clone(), NOW);
    assert!(stable.roll_back().is_err() && stable.resume(NOW).is_err());
    assert_eq!(
        stable.begin(world.old.clone(), NOW).unwrap_err().to_string(),
        "this is the root that signs already"
    );
    let error = stable.begin(world.new.clone(), NOW.after(5 * YEAR)).unwrap_err().to_string();
    assert_eq!(error, "\"CN=new\" is valid from 2025-12-01T00:00:00Z to 2027-01-01T00:00:00Z, not now");
    let begun = stable.begin(world.new.clone(), NOW).unwrap();
    assert!(begun.begin(Ca::root("third").certificate(), NOW).is_err());
    assert!(begun.generation() > stable.generation());
}

#[test]
fn other_roots_are_trusted_beside() {
    let world = World::new();
    let other = Ca::root("other").certificate();
    let others: TrustBundle = [other.clone(), world.old.clone()].into_iter().collect();
    let bundle = Rotation::stable(world.old.clone(), NOW).bundle(&others);
    let names: Vec<&str> = bundle.iter().map(|root| root.name()).collect();
    assert_eq!(names, ["CN=old", "CN=other"]);
}

#[test]
fn what_is_stored_is_read_back_or_refused() {
    let world = World::new();
    let stable = Rotation::stable(world.old.clone(), NOW);
    let begun = stable.begin(world.new.clone(), NOW).unwrap();
    let forced = begun.force("jane", &world.evidence(&[]), &SETTINGS, NOW).unwrap();
    for rotation in [&stable, &begun, &forced, &forced.roll_back().unwrap()] {
        assert_eq!(Rotation::from_json(&rotation.to_json()).unwrap(), *rotation);
    }

    let text = begun.to_json();
    let refused = |text: &str| Rotation::from_json(text).unwrap_err();
    assert!(matches!(refused(""), StoredError::Malformed(_)));
    assert!(matches!(refused("{}"), StoredError::Malformed(_)));
    assert!(matches!(refused(&text[..text.len() - 1]), StoredError::Malformed(_)));
    let newer = text.replacen("\"version\":1", "\"version\":2,\"news\":[]", 1);
    assert_eq!(refused(&newer), StoredError::Version(2));
    let unknown = text.replacen('{', "{\"news\":[],", 1);
    assert!(matches!(refused(&unknown), StoredError::Malformed(_)));
    let other = text.replacen(&world.new.fingerprint().to_string(), &"0".repeat(64), 1);
    assert!(matches!(refused(&other), StoredError::RootMissing(_)));
    let mut both = text.clone();
    both.insert_str(1, &format!("\"stable\":{{\"root\":\"{}\",\"since\":0}},", world.old.fingerprint()));
    assert!(matches!(refused(&both), StoredError::Malformed(_)));
    let no_roots = text.replace("BEGIN CERTIFICATE", "BEGIN NOTHING");
    assert!(matches!(refused(&no_roots), StoredError::Roots(_)));
    assert!(matches!(refused(&" ".repeat(1 << 20)), StoredError::TooLarge(_)));
}
