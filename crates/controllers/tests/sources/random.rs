//! Whatever breaks, and when: what is told is at every moment a state that the cluster was in, and never an earlier one
//! than before; in the end it is the cluster's state.

use crate::fake::{Fake, VIRTUAL_SERVICES};
use crate::harness::{Harness, kind_of, named, object};
use index::Change;
use proptest::collection::vec;
use proptest::prelude::{Just, ProptestConfig, Strategy, prop_oneof, proptest};
use std::collections::BTreeMap;
use std::time::Duration;

type Objects = BTreeMap<String, String>;

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    PutGarbled(u8),
    Delete(u8),
    Wait(u64),
    EndWatches,
    CutWatches,
    MuteWatches,
    FailWatches(u16),
    Bookmark,
    Compact,
    RefuseLists(Option<u16>),
    RefuseWatches(Option<u16>),
    RefusePage(u16),
    Down(bool),
}

fn step() -> impl Strategy<Value = Step> {
    let code = || prop_oneof![Just(410), Just(429), Just(500), Just(503), Just(403), Just(504)];
    let refusal = move || prop_oneof![code().prop_map(Some), Just(None)];
    prop_oneof![
        6 => (0..7u8).prop_map(Step::Put),
        1 => (0..7u8).prop_map(Step::PutGarbled),
        4 => (0..7u8).prop_map(Step::Delete),
        6 => prop_oneof![Just(0u64), 1..500u64, 500..20_000u64].prop_map(Step::Wait),
        1 => Just(Step::EndWatches),
        1 => Just(Step::CutWatches),
        1 => Just(Step::MuteWatches),
        1 => code().prop_map(Step::FailWatches),
        1 => Just(Step::Bookmark),
        1 => Just(Step::Compact),
        1 => refusal().prop_map(Step::RefuseLists),
        1 => refusal().prop_map(Step::RefuseWatches),
        1 => code().prop_map(Step::RefusePage),
        1 => proptest::bool::ANY.prop_map(Step::Down),
    ]
}

/// The cluster, and every state it was in.
struct Truth {
    fake: Fake,
    history: Vec<Objects>,
    generation: u32,
}

impl Truth {
    fn take(&mut self, step: &Step) {
        let path = VIRTUAL_SERVICES;
        let fake = &self.fake;
        match step {
            Step::Put(n) | Step::PutGarbled(n) => {
                self.generation += 1;
                let name = format!("n{n}");
                let object = object(&name, self.generation);
                let mut now = self.history.last().unwrap().clone();
                now.insert(name, self.generation.to_string());
                self.history.push(now);
                match step {
                    Step::Put(_) => fake.put(path, object),
                    _ => fake.put_garbled(path, object),
                }
            }
            Step::Delete(n) => {
                let mut now = self.history.last().unwrap().clone();
                now.remove(&format!("n{n}"));
                self.history.push(now);
                fake.delete(path, "shop", &format!("n{n}"));
            }
            Step::Wait(_) => {}
            Step::EndWatches => fake.end_watches(path),
            Step::CutWatches => fake.cut_watches(path),
            Step::MuteWatches => fake.mute_watches(path),
            Step::FailWatches(code) => fake.fail_watches(path, *code),
            Step::Bookmark => fake.bookmark(path),
            Step::Compact => fake.compact(path),
            Step::RefuseLists(code) => fake.refuse_lists(path, *code),
            Step::RefuseWatches(code) => fake.refuse_watches(path, *code),
            Step::RefusePage(code) => fake.refuse_page(path, *code),
            Step::Down(is_down) => fake.set_down(*is_down),
        }
    }
}

/// Checks what is told against the history, in order. Returns the last state.
fn check(changes: &[Change], history: &[Objects]) -> Objects {
    let mut state: Option<Objects> = None;
    let mut at = 0;
    let mut synced = 0;
    for change in changes.iter().filter(|change| kind_of(change) == "VirtualService") {
        match change {
            Change::Reset(_, objects) => state = Some(objects.iter().map(named).collect()),
            Change::Apply(object) => {
                let (name, v) = named(object);
                state.as_mut().expect("a list comes first").insert(name, v);
            }
            Change::Delete(key) => drop(state.as_mut().expect("a list comes first").remove(&key.name)),
            Change::Synced(_) => synced += 1,
            Change::MeshConfig(_) | Change::Revisions(_) | Change::CatchingUp => {}
        }
        let now = state.as_ref().expect("a list comes first");
        let found = history[at..].iter().position(|then| then == now);
        at += found
            .unwrap_or_else(|| panic!("{change:?} makes {now:?}, which never was from {at} on: {history:?}"));
    }
    assert_eq!(synced, 1);
    state.unwrap()
}

async fn play(steps: &[Step]) {
    let mut truth = Truth { fake: Fake::new(), history: vec![Objects::new()], generation: 0 };
    // More than a page, so that a list can break off between pages.
    (0..5).for_each(|n| truth.take(&Step::Put(n)));
    let mesh = Harness::start(&truth.fake);
    for step in steps {
        truth.take(step);
        if let Step::Wait(milliseconds) = step {
            tokio::time::sleep(Duration::from_millis(*milliseconds)).await;
        }
    }
    truth.take(&Step::Down(false));
    truth.take(&Step::RefuseLists(None));
    truth.take(&Step::RefuseWatches(None));
    mesh.wait(60).await;
    let told = check(&mesh.drain(), &truth.history);
    assert_eq!(Some(&told), truth.history.last());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn only_states_that_were_true_are_told_in_their_order(steps in vec(step(), 1..60)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(play(&steps));
    }
}
