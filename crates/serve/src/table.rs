//! Who is connected, and who has to go when there are too many. No I/O and no clock: numbers grow with time, so the
//! lowest is the oldest.

use crate::config::Limits;
use std::collections::{BTreeSet, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

/// Why a connection is closed, or not let in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Reason {
    /// There are too many, none of them a stranger.
    Full,
    /// There are too many strangers.
    Strangers,
    /// There are too many strangers from its source.
    Source,
    /// The process has no more descriptors.
    Exhausted,
}

impl Reason {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Strangers => "strangers",
            Self::Source => "source",
            Self::Exhausted => "descriptors",
        }
    }
}

/// The connections of a listener. `H` is whatever it takes to end one.
#[derive(Debug)]
pub(crate) struct Table<H> {
    limits: Limits,
    entries: HashMap<u64, Entry<H>>,
    /// The strangers of each source.
    strangers: HashMap<IpAddr, BTreeSet<u64>>,
    /// Sources by how many strangers they have: the last has the most.
    crowds: BTreeSet<(usize, IpAddr)>,
    stranger_count: usize,
    /// The connections of each identity from each source that are not drained.
    known: HashMap<(Arc<str>, IpAddr), BTreeSet<u64>>,
}

#[derive(Debug)]
struct Entry<H> {
    source: IpAddr,
    state: State,
    handle: H,
}

#[derive(Debug)]
enum State {
    Stranger,
    Settled(Option<Arc<str>>),
}

impl<H: Clone> Table<H> {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            entries: HashMap::new(),
            strangers: HashMap::new(),
            crowds: BTreeSet::new(),
            stranger_count: 0,
            known: HashMap::new(),
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(crate) fn strangers(&self) -> usize {
        self.stranger_count
    }

    /// Takes in a new connection. Returns the handle of the one that has to go for it, if any; or that there is no
    /// room.
    pub(crate) fn admit(
        &mut self,
        id: u64,
        address: IpAddr,
        handle: H,
    ) -> Result<Option<(H, Reason)>, Reason> {
        let source = source_of(address);
        let from_source = self.strangers.get(&source).map_or(0, BTreeSet::len);
        let evicted = if from_source >= self.limits.strangers_per_source.max(1) {
            self.evict_from(source).map(|handle| (handle, Reason::Source))
        } else if self.stranger_count >= self.limits.strangers.max(1) {
            self.evict_stranger().map(|handle| (handle, Reason::Strangers))
        } else if self.entries.len() >= self.limits.connections {
            let evicted = self.evict_stranger().map(|handle| (handle, Reason::Full));
            Some(evicted.ok_or(Reason::Full)?)
        } else {
            None
        };
        self.entries.insert(id, Entry { source, state: State::Stranger, handle });
        self.add_stranger(source, id);
        Ok(evicted)
    }

    /// Notes that a connection is no stranger any more. Returns the handle of the oldest one of the same identity and
    /// source if there are too many of them now.
    pub(crate) fn settle(&mut self, id: u64, identity: Option<&str>) -> Option<H> {
        let entry = self.entries.get_mut(&id)?;
        let source = entry.source;
        match &entry.state {
            State::Stranger => {}
            // An identity is added once, by the first request that proves one.
            State::Settled(None) if identity.is_some() => {}
            State::Settled(_) => return None,
        }
        let identity: Option<Arc<str>> = identity.map(Arc::from);
        let before = std::mem::replace(&mut entry.state, State::Settled(identity.clone()));
        if matches!(before, State::Stranger) {
            self.remove_stranger(source, id);
        }
        let known = self.known.entry((identity?, source)).or_default();
        known.insert(id);
        if known.len() <= self.limits.per_identity.max(1) {
            return None;
        }
        let oldest = known.pop_first()?;
        self.entries.get(&oldest).map(|entry| entry.handle.clone())
    }

    /// Forgets a connection that has ended.
    pub(crate) fn remove(&mut self, id: u64) {
        let Some(entry) = self.entries.remove(&id) else { return };
        match entry.state {
            State::Stranger => self.remove_stranger(entry.source, id),
            State::Settled(None) => {}
            State::Settled(Some(identity)) => {
                let key = (identity, entry.source);
                if let Some(known) = self.known.get_mut(&key) {
                    known.remove(&id);
                    if known.is_empty() {
                        self.known.remove(&key);
                    }
                }
            }
        }
    }

    /// Removes the oldest stranger of the source that has the most, and returns its handle.
    pub(crate) fn evict_stranger(&mut self) -> Option<H> {
        let (_, source) = *self.crowds.last()?;
        self.evict_from(source)
    }

    fn evict_from(&mut self, source: IpAddr) -> Option<H> {
        let oldest = *self.strangers.get(&source)?.first()?;
        self.remove_stranger(source, oldest);
        self.entries.remove(&oldest).map(|entry| entry.handle)
    }

    fn add_stranger(&mut self, source: IpAddr, id: u64) {
        let of_source = self.strangers.entry(source).or_default();
        self.crowds.remove(&(of_source.len(), source));
        if of_source.insert(id) {
            self.stranger_count += 1;
        }
        self.crowds.insert((of_source.len(), source));
    }

    fn remove_stranger(&mut self, source: IpAddr, id: u64) {
        let Some(of_source) = self.strangers.get_mut(&source) else { return };
        self.crowds.remove(&(of_source.len(), source));
        if of_source.remove(&id) {
            self.stranger_count -= 1;
        }
        if of_source.is_empty() {
            self.strangers.remove(&source);
        } else {
            self.crowds.insert((of_source.len(), source));
        }
    }
}

/// Returns what counts as one source: whoever has an IPv6 address usually has 2^64 of them.
fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => address.into(),
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(connections: usize, strangers: usize, per_source: usize, per_identity: usize) -> Table<u64> {
        Table::new(Limits { connections, strangers, strangers_per_source: per_source, per_identity })
    }

    fn ip(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[test]
    fn a_source_with_too_many_strangers_loses_its_oldest() {
        let mut table = table(100, 100, 2, 100);
        assert_eq!(table.admit(1, ip(1), 1), Ok(None));
        assert_eq!(table.admit(2, ip(1), 2), Ok(None));
        assert_eq!(table.admit(3, ip(2), 3), Ok(None));
        assert_eq!(table.admit(4, ip(1), 4), Ok(Some((1, Reason::Source))));
        assert_eq!((table.len(), table.strangers()), (3, 3));
    }

    #[test]
    fn too_many_strangers_cost_the_greediest_source() {
        let mut table = table(100, 3, 100, 100);
        table.admit(1, ip(1), 1).unwrap();
        table.admit(2, ip(2), 2).unwrap();
        table.admit(3, ip(2), 3).unwrap();
        assert_eq!(table.admit(4, ip(3), 4), Ok(Some((2, Reason::Strangers))));
        assert_eq!(table.strangers(), 3);
    }

    #[test]
    fn strangers_make_room_and_the_settled_stay() {
        let mut table = table(2, 100, 100, 100);
        table.admit(1, ip(1), 1).unwrap();
        assert_eq!(table.settle(1, Some("a")), None);
        table.admit(2, ip(1), 2).unwrap();
        assert_eq!(table.admit(3, ip(2), 3), Ok(Some((2, Reason::Full))));
        assert_eq!(table.settle(3, Some("b")), None);
        assert_eq!(table.admit(4, ip(3), 4), Err(Reason::Full));
        assert_eq!(table.len(), 2);
        table.remove(1);
        assert_eq!(table.admit(5, ip(3), 5), Ok(None));
    }

    #[test]
    fn an_identity_with_too_many_connections_loses_its_oldest() {
        let mut table = table(100, 100, 100, 2);
        for id in 1..=3 {
            table.admit(id, ip(1), id).unwrap();
        }
        table.admit(4, ip(2), 4).unwrap();
        assert_eq!(table.settle(1, Some("a")), None);
        assert_eq!(table.settle(2, Some("a")), None);
        // Elsewhere the same identity is another pod.
        assert_eq!(table.settle(4, Some("a")), None);
        assert_eq!(table.settle(3, Some("a")), Some(1));
        // It is drained once.
        table.admit(5, ip(1), 5).unwrap();
        assert_eq!(table.settle(5, Some("a")), Some(2));
        assert_eq!(table.len(), 5);
    }

    #[test]
    fn settling_twice_counts_once() {
        let mut table = table(100, 100, 100, 1);
        table.admit(1, ip(1), 1).unwrap();
        assert_eq!(table.settle(1, None), None);
        assert_eq!(table.strangers(), 0);
        assert_eq!(table.settle(1, Some("a")), None);
        assert_eq!(table.settle(1, Some("a")), None);
        assert_eq!(table.settle(9, Some("a")), None, "a connection that is gone");
        table.remove(1);
        table.admit(2, ip(1), 2).unwrap();
        assert_eq!(table.settle(2, Some("a")), None);
    }

    #[test]
    fn neighbours_in_ipv6_are_one_source() {
        let mut table = table(100, 100, 1, 100);
        table.admit(1, "fd00::1".parse().unwrap(), 1).unwrap();
        assert_eq!(table.admit(2, "fd00::2".parse().unwrap(), 2), Ok(Some((1, Reason::Source))));
        assert_eq!(table.admit(3, "fd00:0:0:1::2".parse().unwrap(), 3), Ok(None));
        table.admit(4, "::ffff:10.0.0.1".parse().unwrap(), 4).unwrap();
        assert_eq!(table.admit(5, ip(1), 5), Ok(Some((4, Reason::Source))));
    }

    #[test]
    fn random_histories_leave_nothing_behind() {
        // A small generator of numbers: the same histories each time.
        let mut seed = 1u64;
        let mut random = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) % below
        };
        let mut table = table(40, 20, 8, 3);
        for id in 0..20_000u64 {
            let address = ip(u8::try_from(random(6)).unwrap());
            let _ = table.admit(id, address, id);
            let other = id.saturating_sub(random(30));
            match random(3) {
                0 => drop(table.settle(other, Some(["a", "b", "c"][usize::try_from(random(3)).unwrap()]))),
                1 => drop(table.settle(other, None)),
                _ => table.remove(other),
            }
            let strangers = table.strangers.values().map(BTreeSet::len).sum::<usize>();
            assert_eq!(strangers, table.stranger_count);
            assert!(table.strangers() <= 20 && table.len() <= 40);
            assert_eq!(table.crowds.len(), table.strangers.len());
        }
        for id in 0..20_000 {
            table.remove(id);
        }
        assert_eq!((table.len(), table.strangers()), (0, 0));
        assert!(table.known.is_empty() && table.crowds.is_empty() && table.strangers.is_empty());
    }
}
