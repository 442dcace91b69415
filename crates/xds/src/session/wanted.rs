//! The names that a client wants.
//!
//! Most clients want what others want: every cluster has an assignment, and every client asks for it. So names are mostly
//! in a list that clients with equal lists share, and a client keeps what it added and removed since.

use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use xxhash_rust::xxh3::Xxh3;

/// Names in order, each once.
type List = Arc<[Arc<str>]>;

/// So much a client keeps for itself before it looks for an equal list.
const OWN: usize = 16;

/// After so many lists, those that nobody uses any more are forgotten.
const LISTS: usize = 1024;

/// The lists that clients share.
#[derive(Debug, Default)]
pub(crate) struct Lists(Mutex<HashMap<u128, Weak<[Arc<str>]>>>);

impl Lists {
    /// Returns a list of `names`, which are in order.
    fn share(&self, names: &[&Arc<str>]) -> List {
        let mut hash = Xxh3::new();
        for name in names {
            hash.update(name.as_bytes());
            hash.update(&[0]);
        }
        let key = hash.digest128();
        let mut lists = self.0.lock();
        if let Some(list) = lists.get(&key).and_then(Weak::upgrade)
            && list.iter().eq(names.iter().copied())
        {
            return list;
        }
        if lists.len() >= LISTS {
            lists.retain(|_, list| list.strong_count() > 0);
        }
        let list: List = names.iter().copied().cloned().collect();
        lists.insert(key, Arc::downgrade(&list));
        list
    }
}

/// The names of one type that a client wants.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Names that every snapshot from now on takes into account.
    shared: Option<List>,
    /// Those of them that do not count: they are not wanted, or in `own`.
    hidden: BTreeSet<Arc<str>>,
    /// Further names, with the revision of the subscription that each came with.
    own: BTreeMap<Arc<str>, u64>,
}

impl Wanted {
    fn listed(&self, name: &str) -> Option<&Arc<str>> {
        let list = self.shared.as_deref()?;
        let index = list.binary_search_by(|known| (**known).cmp(name)).ok()?;
        list.get(index).filter(|_| !self.hidden.contains(name))
    }

    pub(crate) fn contains(&self, name: &str) -> bool {
        self.own.contains_key(name) || self.listed(name).is_some()
    }

    /// Returns the name as it is kept here.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<str>> {
        self.own.get_key_value(name).map(|(name, _)| name).or_else(|| self.listed(name))
    }

    /// Whether the name was added at a later revision than `covers`.
    pub(crate) fn is_newer(&self, name: &str, covers: u64) -> bool {
        self.own.get(name).is_some_and(|revision| *revision > covers)
    }

    /// Returns all names, in no particular order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<str>> {
        let list = self.shared.as_deref().unwrap_or_default().iter();
        list.filter(|name| !self.hidden.contains(*name)).chain(self.own.keys())
    }

    pub(crate) fn len(&self) -> usize {
        self.shared.as_deref().unwrap_or_default().len() - self.hidden.len() + self.own.len()
    }

    /// Adds names at a revision, also if they are there already.
    pub(crate) fn add(&mut self, names: &[Arc<str>], revision: u64) {
        for name in names {
            if self.listed(name).is_some() {
                self.hidden.insert(name.clone());
            }
        }
        let added = names.iter().map(|name| (name.clone(), revision));
        if self.own.is_empty() {
            // Of a sorted list, a map is made at once.
            self.own = added.collect();
        } else {
            self.own.extend(added);
        }
    }

    pub(crate) fn remove(&mut self, name: &Arc<str>) {
        self.own.remove(name);
        if self.listed(name).is_some() {
            self.hidden.insert(name.clone());
        }
    }

    /// Shares the names with other clients, once a snapshot that takes into account what came up to the revision `covers`
    /// has taken all of them into account.
    pub(crate) fn share(&mut self, lists: &Lists, covers: u64) {
        if self.own.len() + self.hidden.len() <= OWN || self.own.values().any(|revision| *revision > covers) {
            return;
        }
        let mut names: Vec<&Arc<str>> = self.iter().collect();
        names.sort_unstable();
        let list = lists.share(&names);
        *self = Self { shared: Some(list), ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn names(range: std::ops::Range<u64>) -> Vec<Arc<str>> {
        range.map(|index| format!("name-{index:03}").into()).collect()
    }

    #[test]
    fn equal_lists_are_shared_and_forgotten_with_their_last_client() {
        let lists = Lists::default();
        let client = |range| {
            let mut wanted = Wanted::default();
            wanted.add(&names(range), 1);
            wanted.share(&lists, 1);
            wanted
        };
        let (a, b, c) = (client(0..100), client(0..100), client(0..101));
        assert!(Arc::ptr_eq(a.shared.as_ref().unwrap(), b.shared.as_ref().unwrap()));
        assert_eq!(c.len(), 101);
        drop((a, b));
        assert_eq!(lists.0.lock().values().filter(|list| list.strong_count() > 0).count(), 1);
    }

    #[test]
    fn what_no_snapshot_has_taken_into_account_is_not_shared() {
        let lists = Lists::default();
        let mut wanted = Wanted::default();
        wanted.add(&names(0..100), 7);
        wanted.share(&lists, 6);
        assert!(wanted.shared.is_none() && wanted.is_newer("name-050", 6));
        wanted.share(&lists, 7);
        assert!(wanted.shared.is_some() && !wanted.is_newer("name-050", 6));
        wanted.add(&names(50..51), 8);
        assert!(wanted.is_newer("name-050", 7) && wanted.len() == 100);
    }

    proptest! {
        #[test]
        fn it_is_a_set_with_revisions(
            steps in prop::collection::vec((0..3_u8, 0..60_u64, 0..40_u64), 1..40),
        ) {
            let lists = Lists::default();
            let (mut wanted, mut model) = (Wanted::default(), BTreeMap::<Arc<str>, u64>::new());
            for (revision, (what, from, count)) in (1..).zip(steps) {
                let batch = names(from..from + count);
                match what {
                    0 => {
                        wanted.add(&batch, revision);
                        model.extend(batch.into_iter().map(|name| (name, revision)));
                    }
                    1 => for name in batch {
                        wanted.remove(&name);
                        model.remove(&name);
                    },
                    _ => wanted.share(&lists, revision),
                }
                let all: BTreeSet<&Arc<str>> = wanted.iter().collect();
                prop_assert!(all.into_iter().eq(model.keys()));
                prop_assert_eq!(wanted.len(), model.len());
                for name in names(0..100) {
                    prop_assert_eq!(wanted.contains(&name), model.contains_key(&name));
                    prop_assert_eq!(wanted.get(&name).is_some(), model.contains_key(&name));
                    // A revision matters for as long as no snapshot covers it.
                    let newer = model.get(&name).is_some_and(|at| *at == revision);
                    prop_assert_eq!(wanted.is_newer(&name, revision - 1), newer && what == 0);
                }
            }
        }
    }
}
