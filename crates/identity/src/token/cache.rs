//! What was found out about tokens, for as long as it holds and no more than fits.

use aws_lc_rs::digest;
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::time::SystemTime;

/// Stands for a token, of which nothing is kept.
pub(crate) type Fingerprint = [u8; 32];

/// Returns what stands for `token`.
pub(crate) fn fingerprint(token: &str) -> Fingerprint {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest::digest(&digest::SHA256, token.as_bytes()).as_ref());
    hash
}

/// Values by fingerprint, up to a number of them, the oldest going first.
#[derive(Debug)]
pub(crate) struct Cache<V> {
    limit: usize,
    inner: Mutex<Inner<V>>,
}

#[derive(Debug)]
struct Inner<V> {
    entries: HashMap<Fingerprint, (SystemTime, V)>,
    order: VecDeque<Fingerprint>,
}

impl<V: Clone> Cache<V> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, inner: Mutex::new(Inner { entries: HashMap::new(), order: VecDeque::new() }) }
    }

    /// Returns what is known, if it still holds at `now`.
    pub(crate) fn get(&self, key: &Fingerprint, now: SystemTime) -> Option<V> {
        let inner = self.inner.lock();
        let (until, value) = inner.entries.get(key)?;
        (now < *until).then(|| value.clone())
    }

    pub(crate) fn insert(&self, key: Fingerprint, value: V, until: SystemTime) {
        let mut inner = self.inner.lock();
        if inner.entries.insert(key, (until, value)).is_none() {
            inner.order.push_back(key);
        }
        while inner.order.len() > self.limit {
            let Some(oldest) = inner.order.pop_front() else { break };
            inner.entries.remove(&oldest);
        }
    }

    #[cfg(test)]
    fn len(&self) -> usize {
        self.inner.lock().entries.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn entries_end_with_their_time_and_the_oldest_make_room() {
        let cache = Cache::new(2);
        let at = |seconds| UNIX_EPOCH + Duration::from_secs(seconds);
        let [a, b, c] = ["a", "b", "c"].map(fingerprint);
        cache.insert(a, 1, at(10));
        assert_eq!(cache.get(&a, at(9)), Some(1));
        assert_eq!(cache.get(&a, at(10)), None);
        cache.insert(b, 2, at(10));
        cache.insert(a, 3, at(20));
        assert_eq!(cache.get(&a, at(10)), Some(3));
        cache.insert(c, 4, at(10));
        assert_eq!(cache.get(&a, at(0)), None, "it came first");
        assert_eq!((cache.get(&b, at(0)), cache.get(&c, at(0))), (Some(2), Some(4)));
        assert_eq!(cache.len(), 2);
    }
}
