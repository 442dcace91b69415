//! Several replicas of a control plane: what they know together, and when a step is taken.

mod common;

use ca::rotation::{
    Blocked, BundleLog, Evidence, LeafReport, Phase, Progress, ProxyReport, ReplicaError, ReplicaReport,
    RetireWhen, Rotation, Seen, Settings, Together, together,
};
use ca::{BundleHash, CaCertificate, TrustBundle, UnixTime};
use common::{Ca, DAY, HOUR, NOW, YEAR};
use std::collections::BTreeMap;
use std::time::Duration;

const LAG: Duration = Duration::from_secs(60);
const SETTINGS: Settings = Settings { leaf_lifetime: DAY, replica_lag: LAG, retire: RetireWhen::Replaced };
const LONG_AGO: UnixTime = UnixTime::from_seconds(NOW.as_seconds() - 10 * 24 * 3600);

struct World {
    old: CaCertificate,
    new: CaCertificate,
    log: BundleLog,
    /// Both are trusted, the old one signs.
    rotation: Rotation,
}

impl World {
    fn new() -> Self {
        let (old, new) = (Ca::root("old").certificate(), Ca::root("new").certificate());
        let mut log = BundleLog::new();
        for roots in [vec![&old], vec![&old, &new], vec![&new]] {
            log.note(&roots.into_iter().cloned().collect());
        }
        let rotation = Rotation::stable(old.clone(), NOW.before(YEAR)).begin(new.clone(), NOW.before(HOUR));
        Self { rotation: rotation.unwrap(), old, new, log }
    }

    fn hash(&self, roots: &[&CaCertificate]) -> BundleHash {
        roots.iter().map(|root| (*root).clone()).collect::<TrustBundle>().hash()
    }

    fn proxy(&self, name: &str, trusts: &[&CaCertificate], asks: bool) -> Seen {
        let report = ProxyReport {
            name: name.into(),
            acked: (!trusts.is_empty()).then(|| self.hash(trusts)),
            unanswered: Vec::new(),
            leaves: vec![LeafReport { root: self.old.fingerprint(), not_after: NOW.after(DAY) }],
            last_seen: NOW,
        };
        Seen { report, asks, alias: None }
    }

    /// What a replica writes that acts by the present state.
    fn report(&self, written: UnixTime, seen: &[Seen]) -> ReplicaReport {
        let report = ReplicaReport::alive(written, LONG_AGO, self.rotation.generation(), DAY);
        let report = report.with(seen, &self.log);
        let read = ReplicaReport::from_json(&report.to_json().unwrap()).unwrap();
        assert_eq!(read, report);
        read
    }

    fn together(&self, own: Vec<Seen>, others: &BTreeMap<String, ReplicaReport>) -> Together {
        together(own, LONG_AGO, &self.log, others, &SETTINGS, NOW)
    }

    fn next(&self, own: Vec<Seen>, others: &BTreeMap<String, ReplicaReport>) -> Result<Phase, Box<Progress>> {
        let all = self.together(own, others);
        let evidence = Evidence {
            proxies: &all.proxies,
            complete_since: all.complete_since,
            bundles: &all.bundles,
            replicas: &all.replicas,
        };
        self.rotation.next(&evidence, &SETTINGS, NOW).map(|next| next.phase())
    }

    /// Returns who is in the way.
    fn blockers(&self, own: Vec<Seen>, others: &BTreeMap<String, ReplicaReport>) -> Vec<(String, Blocked)> {
        let progress = self.next(own, others).unwrap_err();
        progress.blockers.iter().map(|blocker| (blocker.proxy.to_string(), blocker.reason)).collect()
    }
}

fn one(report: ReplicaReport) -> BTreeMap<String, ReplicaReport> {
    BTreeMap::from([("b".to_owned(), report)])
}

#[test]
fn a_step_waits_for_the_proxies_of_all_replicas() {
    let world = World::new();
    let (old, both) = ([&world.old], [&world.old, &world.new]);
    let here = || vec![world.proxy("p1", &both, true)];
    let behind = one(world.report(NOW, &[world.proxy("p2", &old, true)]));
    assert_eq!(world.blockers(here(), &behind), [("p2".to_owned(), Blocked::OtherBundle)]);
    let ready = one(world.report(NOW, &[world.proxy("p2", &both, true)]));
    assert_eq!(world.next(here(), &ready), Ok(Phase::Switched));
}

#[test]
fn where_a_proxy_asks_for_roots_now_counts_and_not_where_it_was() {
    let world = World::new();
    let (old, both) = ([&world.old], [&world.old, &world.new]);
    // Its Envoy is connected here, and its agent, which asks for roots, is connected there; it was here before.
    for here in [world.proxy("p", &[], false), world.proxy("p", &old, false)] {
        let there = one(world.report(NOW, &[world.proxy("p", &both, true)]));
        assert_eq!(world.next(vec![here], &there), Ok(Phase::Switched));
    }
    // If it asks nobody now, it may use what anybody knew it to use.
    let there = one(world.report(NOW, &[world.proxy("p", &both, false)]));
    let blockers = world.blockers(vec![world.proxy("p", &old, false)], &there);
    assert_eq!(blockers, [("p".to_owned(), Blocked::OtherBundle)]);
    // If it asks two, both have to be answered.
    let there = one(world.report(NOW, &[world.proxy("p", &[], true)]));
    let blockers = world.blockers(vec![world.proxy("p", &both, true)], &there);
    assert_eq!(blockers, [("p".to_owned(), Blocked::NoBundle)]);
}

#[test]
fn a_proxy_that_one_replica_knows_by_its_address_alone_is_who_it_says_if_another_one_knows_that_name() {
    let world = World::new();
    let both = [&world.old, &world.new];
    // Its Envoy is connected here with a certificate that names no pod; the token that the other saw does.
    let mut here = world.proxy("ns/shop/sa/cart at 10.0.0.1", &[], false);
    assert_eq!(world.blockers(vec![here.clone()], &BTreeMap::new())[0].1, Blocked::NoBundle);
    here.alias = Some("p".into());
    assert_eq!(world.blockers(vec![here.clone()], &BTreeMap::new())[0].1, Blocked::NoBundle);
    let there = one(world.report(NOW, &[world.proxy("p", &both, true)]));
    assert_eq!(world.next(vec![here.clone()], &there), Ok(Phase::Switched));
    let there = one(world.report(NOW, &[here]));
    assert_eq!(world.next(vec![world.proxy("p", &both, true)], &there), Ok(Phase::Switched));
}

#[test]
fn certificates_that_any_replica_knows_of_count() {
    let world = World::new();
    let (here, mut there) = (world.proxy("p", &[&world.new], true), world.proxy("p", &[], false));
    let mine = LeafReport { root: world.new.fingerprint(), not_after: NOW.after(DAY) };
    there.report.leaves = vec![mine];
    let all = world.together(vec![here.clone()], &one(world.report(NOW, &[there])));
    assert_eq!(all.proxies.len(), 1);
    assert_eq!(all.proxies[0].leaves, [here.report.leaves[0], mine]);
}

#[test]
fn a_replica_that_is_silent_or_behind_is_in_the_way_of_every_step() {
    let world = World::new();
    let both = [&world.old, &world.new];
    let here = || vec![world.proxy("p1", &both, true)];
    let there = [world.proxy("p2", &both, true)];
    let written = |written| one(world.report(written, &there));
    assert_eq!(world.next(here(), &written(NOW.before(LAG))), Ok(Phase::Switched));
    let silent = [("replica b".to_owned(), Blocked::Silent)];
    assert_eq!(world.blockers(here(), &written(NOW.before(LAG + Duration::from_secs(1)))), silent);
    // Until whatever it can have signed has expired.
    let at_most = DAY + DAY + LAG;
    assert_eq!(world.blockers(here(), &written(NOW.before(at_most))), silent);
    assert_eq!(
        world.next(here(), &written(NOW.before(at_most + Duration::from_secs(1)))),
        Ok(Phase::Switched)
    );

    let mut behind = world.report(NOW, &there);
    behind.generation = world.rotation.generation() - 1;
    assert_eq!(world.blockers(here(), &one(behind)), [("replica b".to_owned(), Blocked::Behind)]);
}

#[test]
fn one_that_has_left_is_not_waited_for_but_its_proxies_are() {
    let world = World::new();
    let (old, both) = ([&world.old], [&world.old, &world.new]);
    let left = |seen: &[Seen]| {
        let mut report = world.report(NOW.before(HOUR), seen);
        report.has_left = true;
        report.generation = 0;
        one(report)
    };
    let here = |trusts: &[&CaCertificate]| vec![world.proxy("p", trusts, true)];
    // Its streams ended with it: what the proxy says here counts.
    assert_eq!(world.next(here(&both), &left(&[world.proxy("p", &old, true)])), Ok(Phase::Switched));
    let lost = world.proxy("lost", &old, true);
    let blockers = world.blockers(here(&both), &left(&[lost]));
    assert_eq!(blockers, [("lost".to_owned(), Blocked::OtherBundle)]);
}

#[test]
fn what_a_replica_took_along_unsaid_may_be_missing_until_certificates_expire() {
    let world = World::new();
    let both = [&world.old, &world.new];
    let here = vec![world.proxy("p1", &both, true)];
    let mut left = ReplicaReport::alive(NOW.before(HOUR), LONG_AGO, 0, DAY);
    left.has_left = true;
    let progress = world.next(here.clone(), &one(left.clone())).unwrap_err();
    assert!(progress.not_before.is_some_and(|until| until > NOW.after(DAY - HOUR - LAG)), "{progress}");
    // A replica that has just started knows nobody yet.
    let mut young = world.report(NOW, &[]);
    young.since = NOW.before(HOUR);
    assert!(world.next(here, &one(young)).unwrap_err().not_before.is_some());
}

#[test]
fn a_bundle_that_nobody_remembers_is_in_the_way() {
    let world = World::new();
    let stranger = Ca::root("stranger").certificate();
    let mut seen = world.proxy("p", &[&world.old, &world.new], true);
    seen.report.unanswered.push(world.hash(&[&stranger]));
    let blockers = world.blockers(Vec::new(), &one(world.report(NOW, &[seen])));
    assert_eq!(blockers, [("p".to_owned(), Blocked::UnknownBundle)]);
}

#[test]
fn what_is_no_report_is_refused() {
    let world = World::new();
    let good = world.report(NOW, &[world.proxy("p", &[&world.old], true)]).to_json().unwrap();
    for (from, to) in [("\"acked\":0", "\"acked\":99"), ("\"leaves\":[[0", "\"leaves\":[[7")] {
        assert!(good.contains(from), "{good}");
        let error = ReplicaReport::from_json(&good.replace(from, to)).unwrap_err();
        assert!(matches!(error, ReplicaError::Dangling), "{error}");
    }
    let other = good.replace("\"version\":1", "\"version\":2");
    assert!(matches!(ReplicaReport::from_json(&other), Err(ReplicaError::Version(2))));
    assert!(matches!(ReplicaReport::from_json("{"), Err(ReplicaError::Malformed(_))));
    let many: Vec<Seen> =
        (0..20_000).map(|number| world.proxy(&format!("proxy-{number}.shop"), &[&world.old], true)).collect();
    let report = ReplicaReport::alive(NOW, NOW, 0, DAY).with(&many, &world.log);
    assert!(matches!(report.to_json(), Err(ReplicaError::TooLarge { proxies: 20_000, .. })));
}
