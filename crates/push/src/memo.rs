//! An incremental evaluator: remembers answers, and what each of them rests on.
//!
//! A computation answers *queries*; to do so it reads *keys* (inputs) and asks further queries. The memo keeps
//! each answer with everything it rests on. When keys change, the answers that read them are marked dirty, and
//! all that rest on those are marked to be checked. The next time one of them is asked for, it is first found
//! out whether anything below it really came out different: equal answers end the wave. An answer that is made of many
//! others can take up the few that did.
//!
//! ```text
//! changed keys ──▶ dirty answers ──▶ answers to check … roots
//!                  recomputed          recomputed or patched only if something below differs
//! ```
//!
//! The work done is proportional to the part of the graph that a change reaches, not to the graph.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::fmt::Debug;
use std::hash::{BuildHasherDefault, Hash, Hasher};

/// What the memo evaluates. Evaluation must be a pure function of the inputs and of the query: whatever it
/// depends on, it reads or asks for through [`Ask`].
pub trait Computation {
    /// A question. Equal queries have equal answers as long as no input changes. Cheap to clone and to hash.
    type Query: Clone + Eq + Hash + Debug;
    /// An answer. Cheap to clone.
    type Answer: Clone;
    /// An input.
    type Key: Clone + Eq + Hash + Ord;

    /// Answers `query`, with `previous`, the answer before the last change if there is one, to share structure
    /// with. Returns the answer and every key that was read for it.
    fn evaluate(
        &self,
        query: &Self::Query,
        previous: Option<&Self::Answer>,
        ask: &mut dyn FnMut(&Self::Query) -> Self::Answer,
    ) -> (Self::Answer, BTreeSet<Self::Key>);

    /// Returns whether nobody could tell the answers apart.
    fn same(a: &Self::Answer, b: &Self::Answer) -> bool;

    /// Returns whether [`Computation::patch`] may know what becomes of the answer of `query` when that of `below`
    /// changes, which in any case changes neither what is read for it nor what is asked.
    fn is_patched_by(_query: &Self::Query, _below: &Self::Query) -> bool {
        false
    }

    /// Returns what evaluation would, if nothing but these further answers has changed since `previous`: for answers
    /// that are made of many others. Nothing if it does not know.
    fn patch(&self, _previous: &Self::Answer, _changed: &[Self::Answer]) -> Option<Self::Answer> {
        None
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum State {
    /// The answer holds.
    Clean,
    /// Something below may have changed.
    Check,
    /// Something that was read has changed.
    Dirty,
}

type NodeId = usize;

/// An answer that is retained: asking about it costs no search.
#[derive(Debug, PartialEq, Eq)]
pub struct Root(NodeId);

type NodeSet = HashSet<NodeId, BuildHasherDefault<NodeHasher>>;

/// Spreads node numbers, which nobody but us chooses, over a table.
#[derive(Default)]
struct NodeHasher(u64);

impl Hasher for NodeHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_usize(byte.into());
        }
    }

    fn write_usize(&mut self, number: usize) {
        self.0 = (self.0 ^ number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(32);
    }
}

struct Node<C: Computation> {
    query: C::Query,
    answer: Option<C::Answer>,
    state: State,
    /// The revision in which the answer was last found to hold.
    verified: u64,
    /// The revision in which the answer last became a different one.
    changed: u64,
    keys: BTreeSet<C::Key>,
    /// In the order in which they were first asked: an earlier answer may decide whether a later query makes
    /// sense at all.
    asks: Vec<NodeId>,
    dependents: NodeSet,
    roots: usize,
}

/// What the memo did since it was made, for tests, benchmarks and metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Evaluations.
    pub evaluated: u64,
    /// Evaluations whose answer was the same as before.
    pub unchanged: u64,
    /// Of these, those that only took up what has changed below them.
    pub patched: u64,
    /// Answers that were found to hold by checking what they rest on.
    pub verified: u64,
}

/// Remembered answers of a [`Computation`].
pub struct Memo<C: Computation> {
    nodes: Vec<Option<Node<C>>>,
    free: Vec<NodeId>,
    ids: HashMap<C::Query, NodeId>,
    readers: HashMap<C::Key, NodeSet>,
    /// Nodes that nobody rested on when last looked at.
    orphans: NodeSet,
    revision: u64,
    counters: Counters,
}

impl<C: Computation> Default for Memo<C> {
    fn default() -> Self {
        Self {
            nodes: Vec::new(),
            free: Vec::new(),
            ids: HashMap::new(),
            readers: HashMap::new(),
            orphans: NodeSet::default(),
            revision: 1,
            counters: Counters::default(),
        }
    }
}

impl<C: Computation> Memo<C> {
    /// Notes that these inputs read differently from now on. Nothing is computed.
    pub fn invalidate<'k>(&mut self, keys: impl IntoIterator<Item = &'k C::Key>)
    where
        C::Key: 'k,
    {
        self.revision += 1;
        let mut wave = Vec::new();
        for key in keys {
            for &id in self.readers.get(key).into_iter().flatten() {
                let node = node_mut(&mut self.nodes, id);
                if node.state == State::Clean {
                    wave.extend(node.dependents.iter().copied());
                }
                node.state = State::Dirty;
            }
        }
        while let Some(id) = wave.pop() {
            let node = node_mut(&mut self.nodes, id);
            if node.state == State::Clean {
                node.state = State::Check;
                wave.extend(node.dependents.iter().copied());
            }
        }
    }

    /// Keeps the answer of `query`, and all that it rests on, until [`Memo::release`].
    #[must_use]
    pub fn retain(&mut self, query: &C::Query) -> Root {
        let id = self.id_of(query);
        node_mut(&mut self.nodes, id).roots += 1;
        self.orphans.remove(&id);
        Root(id)
    }

    /// Takes back one [`Memo::retain`] of this memo.
    pub fn release(&mut self, Root(id): Root) {
        let node = node_mut(&mut self.nodes, id);
        node.roots -= 1;
        if node.roots == 0 && node.dependents.is_empty() {
            self.orphans.insert(id);
        }
    }

    /// Forgets all answers that no retained one rests on, and returns how many they were.
    pub fn sweep(&mut self) -> usize {
        let mut forgotten = 0;
        let mut queue: Vec<NodeId> = self.orphans.drain().collect();
        while let Some(id) = queue.pop() {
            let Some(node) = self.nodes[id].as_ref() else { continue };
            if node.roots > 0 || !node.dependents.is_empty() {
                continue;
            }
            let Some(node) = self.nodes[id].take() else { continue };
            forgotten += 1;
            self.ids.remove(&node.query);
            self.free.push(id);
            for key in &node.keys {
                remove_reader(&mut self.readers, key, id);
            }
            for below in node.asks {
                let below_node = node_mut(&mut self.nodes, below);
                below_node.dependents.remove(&id);
                if below_node.dependents.is_empty() && below_node.roots == 0 {
                    queue.push(below);
                }
            }
        }
        forgotten
    }

    /// Returns the answer of `query` as of the inputs that `computation` reads now, which must be those of the
    /// last [`Memo::invalidate`].
    pub fn ask(&mut self, computation: &C, query: &C::Query) -> C::Answer {
        let id = self.id_of(query);
        self.refresh(computation, id);
        self.answer_of(id)
    }

    /// Returns what [`Memo::ask`] does for the query that was retained.
    pub fn ask_root(&mut self, computation: &C, &Root(id): &Root) -> C::Answer {
        self.refresh(computation, id);
        self.answer_of(id)
    }

    /// Returns whether asking would return what was returned last, without any work.
    pub fn is_clean(&self, &Root(id): &Root) -> bool {
        node(&self.nodes, id).state == State::Clean
    }

    /// Goes through the answers that rest on any of these keys. `visit` says whether what rests on an answer in turn is of
    /// interest too. Nothing is computed, and what is out of date is taken as it is.
    pub fn above<'k>(
        &self,
        keys: impl IntoIterator<Item = &'k C::Key>,
        mut visit: impl FnMut(&C::Query, &C::Answer) -> bool,
    ) where
        C::Key: 'k,
    {
        let mut wave: Vec<NodeId> =
            keys.into_iter().filter_map(|key| self.readers.get(key)).flatten().copied().collect();
        let mut seen: NodeSet = wave.iter().copied().collect();
        while let Some(id) = wave.pop() {
            let node = node(&self.nodes, id);
            let Some(answer) = &node.answer else { continue };
            if visit(&node.query, answer) {
                wave.extend(node.dependents.iter().copied().filter(|above| seen.insert(*above)));
            }
        }
    }

    /// Returns the keys that the answers rest on which `holds` picks out. Looks at every answer.
    pub fn below(&self, holds: impl Fn(&C::Answer) -> bool) -> BTreeSet<C::Key> {
        let picked = self.nodes.iter().enumerate().filter_map(|(id, node)| Some((id, node.as_ref()?)));
        let picked = picked.filter(|(_, node)| node.answer.as_ref().is_some_and(&holds));
        let mut wave: Vec<NodeId> = picked.map(|(id, _)| id).collect();
        let mut seen: NodeSet = wave.iter().copied().collect();
        let mut keys = BTreeSet::new();
        while let Some(id) = wave.pop() {
            let node = node(&self.nodes, id);
            keys.extend(node.keys.iter().cloned());
            wave.extend(node.asks.iter().copied().filter(|below| seen.insert(*below)));
        }
        keys
    }

    /// Returns what was done so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// Returns the number of answers that are remembered.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Returns whether no answer is remembered.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    fn id_of(&mut self, query: &C::Query) -> NodeId {
        if let Some(&id) = self.ids.get(query) {
            return id;
        }
        let node = Node {
            query: query.clone(),
            answer: None,
            state: State::Dirty,
            verified: 0,
            changed: 0,
            keys: BTreeSet::new(),
            asks: Vec::new(),
            dependents: NodeSet::default(),
            roots: 0,
        };
        let id = match self.free.pop() {
            Some(id) => {
                self.nodes[id] = Some(node);
                id
            }
            None => {
                self.nodes.push(Some(node));
                self.nodes.len() - 1
            }
        };
        self.ids.insert(query.clone(), id);
        self.orphans.insert(id);
        id
    }

    fn answer_of(&self, id: NodeId) -> C::Answer {
        node(&self.nodes, id).answer.clone().expect("a refreshed node has an answer")
    }

    /// Makes the node clean.
    fn refresh(&mut self, computation: &C, id: NodeId) {
        match node(&self.nodes, id).state {
            State::Clean => {}
            State::Dirty => self.recompute(computation, id),
            State::Check => self.check(computation, id),
        }
    }

    /// Makes a node clean of which nothing that it read has changed.
    fn check(&mut self, computation: &C, id: NodeId) {
        let verified = node(&self.nodes, id).verified;
        let mut changed = Vec::new();
        let mut position = 0;
        while let Some(&below) = node(&self.nodes, id).asks.get(position) {
            self.refresh(computation, below);
            let below = node(&self.nodes, below);
            if below.changed > verified {
                if !C::is_patched_by(&node(&self.nodes, id).query, &below.query) {
                    return self.recompute(computation, id);
                }
                changed.extend(below.answer.clone());
            }
            position += 1;
        }
        if !changed.is_empty() {
            let previous = node(&self.nodes, id).answer.as_ref();
            let Some(answer) = previous.and_then(|previous| computation.patch(previous, &changed)) else {
                return self.recompute(computation, id);
            };
            self.counters.patched += 1;
            return self.evaluated(id, answer);
        }
        self.counters.verified += 1;
        let revision = self.revision;
        let node = node_mut(&mut self.nodes, id);
        node.state = State::Clean;
        node.verified = revision;
    }

    fn recompute(&mut self, computation: &C, id: NodeId) {
        let query = node(&self.nodes, id).query.clone();
        let previous = node(&self.nodes, id).answer.clone();
        let mut asks: Vec<NodeId> = Vec::new();
        let mut asked = NodeSet::default();
        let (answer, keys) = computation.evaluate(&query, previous.as_ref(), &mut |below| {
            let below = self.id_of(below);
            if asked.insert(below) {
                asks.push(below);
            }
            self.refresh(computation, below);
            self.answer_of(below)
        });
        self.replace_keys(id, keys);
        self.replace_asks(id, asks, &asked);
        self.evaluated(id, answer);
    }

    /// Takes up a new answer.
    fn evaluated(&mut self, id: NodeId, answer: C::Answer) {
        let revision = self.revision;
        let node = node_mut(&mut self.nodes, id);
        let same = node.answer.as_ref().is_some_and(|previous| C::same(previous, &answer));
        self.counters.evaluated += 1;
        self.counters.unchanged += u64::from(same);
        if !same {
            node.answer = Some(answer);
            node.changed = revision;
        }
        node.state = State::Clean;
        node.verified = revision;
    }

    fn replace_keys(&mut self, id: NodeId, keys: BTreeSet<C::Key>) {
        if node(&self.nodes, id).keys == keys {
            return;
        }
        let old = std::mem::take(&mut node_mut(&mut self.nodes, id).keys);
        for gone in old.difference(&keys) {
            remove_reader(&mut self.readers, gone, id);
        }
        for added in keys.difference(&old) {
            self.readers.entry(added.clone()).or_default().insert(id);
        }
        node_mut(&mut self.nodes, id).keys = keys;
    }

    fn replace_asks(&mut self, id: NodeId, asks: Vec<NodeId>, asked: &NodeSet) {
        // Mostly an answer rests on what it rested on before.
        if node(&self.nodes, id).asks == asks {
            return;
        }
        for &below in asked {
            node_mut(&mut self.nodes, below).dependents.insert(id);
            self.orphans.remove(&below);
        }
        let old = std::mem::replace(&mut node_mut(&mut self.nodes, id).asks, asks);
        for below in old.into_iter().filter(|below| !asked.contains(below)) {
            let node = node_mut(&mut self.nodes, below);
            node.dependents.remove(&id);
            if node.dependents.is_empty() && node.roots == 0 {
                self.orphans.insert(below);
            }
        }
    }
}

fn node<C: Computation>(nodes: &[Option<Node<C>>], id: NodeId) -> &Node<C> {
    nodes[id].as_ref().expect("ids in use name nodes: only sweep removes them, and their edges with them")
}

fn node_mut<C: Computation>(nodes: &mut [Option<Node<C>>], id: NodeId) -> &mut Node<C> {
    nodes[id].as_mut().expect("ids in use name nodes: only sweep removes them, and their edges with them")
}

fn remove_reader<K: Eq + Hash>(readers: &mut HashMap<K, NodeSet>, key: &K, id: NodeId) {
    if let Some(ids) = readers.get_mut(key) {
        ids.remove(&id);
        if ids.is_empty() {
            readers.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::cell::RefCell;

    /// A spreadsheet: cells read inputs and other cells.
    struct Sheet {
        inputs: RefCell<Vec<i64>>,
    }

    #[derive(Clone, Debug, PartialEq, Eq, Hash)]
    enum Cell {
        /// The value of an input.
        Input(usize),
        /// The sign of an input.
        Sign(usize),
        /// The sum of the signs of a range of inputs.
        Signs(usize, usize),
        /// The largest of so many inputs.
        Largest(usize),
        /// The first input decides which other one is returned.
        Choice,
    }

    impl Sheet {
        fn new(inputs: &[i64]) -> Self {
            Self { inputs: RefCell::new(inputs.to_vec()) }
        }

        fn set(&self, memo: &mut Memo<Self>, index: usize, value: i64) {
            self.inputs.borrow_mut()[index] = value;
            memo.invalidate([&index]);
        }
    }

    impl Computation for Sheet {
        type Query = Cell;
        type Answer = i64;
        type Key = usize;

        fn evaluate(
            &self,
            query: &Cell,
            _previous: Option<&i64>,
            ask: &mut dyn FnMut(&Cell) -> i64,
        ) -> (i64, BTreeSet<usize>) {
            match query {
                Cell::Input(index) => (self.inputs.borrow()[*index], BTreeSet::from([*index])),
                Cell::Sign(index) => (ask(&Cell::Input(*index)).signum(), BTreeSet::new()),
                Cell::Signs(from, to) => ((*from..*to).map(|i| ask(&Cell::Sign(i))).sum(), BTreeSet::new()),
                Cell::Largest(count) => {
                    ((0..*count).map(|i| ask(&Cell::Input(i))).max().unwrap_or(0), BTreeSet::new())
                }
                Cell::Choice => {
                    let count = self.inputs.borrow().len() as i64;
                    let chosen = ask(&Cell::Input(0)).rem_euclid(count) as usize;
                    (ask(&Cell::Input(chosen)), BTreeSet::new())
                }
            }
        }

        fn same(a: &i64, b: &i64) -> bool {
            a == b
        }

        fn is_patched_by(query: &Cell, below: &Cell) -> bool {
            matches!((query, below), (Cell::Largest(_), Cell::Input(_)))
        }

        fn patch(&self, previous: &i64, changed: &[i64]) -> Option<i64> {
            // One that was the largest may have shrunk.
            let largest = *changed.iter().max()?;
            (largest >= *previous).then_some(largest)
        }
    }

    #[test]
    fn an_answer_is_computed_once() {
        let sheet = Sheet::new(&[1, -2, 3]);
        let mut memo = Memo::default();
        assert_eq!(memo.ask(&sheet, &Cell::Signs(0, 3)), 1);
        let before = memo.counters();
        assert_eq!(memo.ask(&sheet, &Cell::Signs(0, 3)), 1);
        assert_eq!(memo.counters(), before);
    }

    #[test]
    fn an_equal_answer_ends_the_wave() {
        let sheet = Sheet::new(&[1, -2, 3]);
        let mut memo = Memo::default();
        memo.ask(&sheet, &Cell::Signs(0, 3));
        let before = memo.counters().evaluated;
        sheet.set(&mut memo, 0, 7);
        assert_eq!(memo.ask(&sheet, &Cell::Signs(0, 3)), 1);
        // The input and its sign, but not the sum: the sign is what it was.
        assert_eq!(memo.counters().evaluated - before, 2);
    }

    #[test]
    fn only_what_a_change_reaches_is_computed() {
        let sheet = Sheet::new(&[1; 1000]);
        let mut memo = Memo::default();
        memo.ask(&sheet, &Cell::Signs(0, 1000));
        let before = memo.counters().evaluated;
        sheet.set(&mut memo, 500, -1);
        assert_eq!(memo.ask(&sheet, &Cell::Signs(0, 1000)), 998);
        assert_eq!(memo.counters().evaluated - before, 3);
    }

    #[test]
    fn an_answer_takes_up_what_it_can_and_is_computed_otherwise() {
        let sheet = Sheet::new(&[1, 5, 3]);
        let mut memo = Memo::default();
        assert_eq!(memo.ask(&sheet, &Cell::Largest(3)), 5);
        sheet.set(&mut memo, 0, 7);
        assert_eq!(memo.ask(&sheet, &Cell::Largest(3)), 7);
        assert_eq!(memo.counters().patched, 1);
        sheet.set(&mut memo, 0, 2);
        assert_eq!(memo.ask(&sheet, &Cell::Largest(3)), 5);
        assert_eq!(memo.counters().patched, 1);
        // It rests on the same as ever.
        sheet.set(&mut memo, 2, 9);
        assert_eq!(memo.ask(&sheet, &Cell::Largest(3)), 9);
        assert_eq!(memo.counters().patched, 2);
    }

    #[test]
    fn what_an_answer_no_longer_rests_on_is_swept() {
        let sheet = Sheet::new(&[1, 10, 20]);
        let mut memo = Memo::default();
        let choice = memo.retain(&Cell::Choice);
        assert_eq!(memo.ask_root(&sheet, &choice), 10);
        sheet.set(&mut memo, 0, 2);
        assert_eq!(memo.ask(&sheet, &Cell::Choice), 20);
        assert_eq!(memo.sweep(), 1);
        assert_eq!(memo.len(), 3);
        memo.release(choice);
        assert_eq!(memo.sweep(), 3);
        assert!(memo.is_empty());
    }

    proptest! {
        #[test]
        fn remembered_answers_are_those_of_a_fresh_computation(
            start in prop::collection::vec(-5i64..5, 1..8),
            edits in prop::collection::vec((0usize..8, -5i64..5, any::<bool>()), 0..40),
        ) {
            let sheet = Sheet::new(&start);
            let count = start.len();
            let mut memo = Memo::default();
            let choice = memo.retain(&Cell::Choice);
            for (index, value, look) in edits {
                sheet.set(&mut memo, index % count, value);
                if look {
                    for query in [Cell::Signs(0, count), Cell::Choice, Cell::Largest(count), Cell::Signs(0, count / 2)] {
                        let fresh = Memo::default().ask(&sheet, &query);
                        prop_assert_eq!(memo.ask(&sheet, &query), fresh);
                    }
                    prop_assert!(memo.is_clean(&choice));
                    memo.sweep();
                }
            }
        }
    }
}
