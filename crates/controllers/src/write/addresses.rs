//! Addresses of ServiceEntries that have none: in their status, where proxies and DNS take them from.
//!
//! An address is chosen by a hash of what it is for, so that the same objects have the same addresses in every cluster,
//! except where that is taken; then the next free one is. What an object has it keeps, whoever gave it that.

use super::keeper::{Apply, Domain, is_older, stands_for};
use crate::tap::{Name, Seen, name_of};
use k8s_api::service_entry::ServiceEntry;
use kube::Resource as _;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, Ordering};

/// Where addresses are taken from: Istio's ranges, `240.240.0.0/16` and `2001:2::/48`, which nobody else uses.
const FIRST_V4: u32 = u32::from_be_bytes([240, 240, 0, 1]);
/// So many there are in the first range, without those that a network needs for itself. As many are used of the other.
const SIZE: u32 = (1 << 16) - 2;
const V6: [u16; 2] = [0x2001, 2];

/// Namespace and name of a ServiceEntry.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EntryName(Name);

impl fmt::Display for EntryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ServiceEntry {}/{}", self.0.0, self.0.1)
    }
}

/// Who has an address: of several, the first. The oldest counts.
type Claim = (i64, EntryName, String);

/// All ServiceEntries, and who has which address.
#[derive(Default)]
pub(super) struct Addresses {
    known: BTreeMap<EntryName, Known>,
    /// Those who have an address.
    claims: HashMap<IpAddr, BTreeSet<Claim>>,
    is_complete: bool,
    said_exhausted: AtomicBool,
}

struct Known {
    version: String,
    created: i64,
    /// The hosts that addresses are wanted for.
    hosts: BTreeSet<String>,
    /// The addresses of its status, and what they are for.
    has: Vec<(IpAddr, String)>,
    /// Addresses of its own.
    own: Vec<IpAddr>,
}

impl Known {
    fn of(entry: &ServiceEntry) -> Self {
        let created = entry.metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second());
        let wants = translate::is_auto_allocated(entry);
        let hosts = entry.spec.hosts.iter().filter(|host| wants && !host.starts_with('*'));
        let status = entry.status.as_ref().map(|status| status.addresses.as_slice()).unwrap_or_default();
        let has =
            status.iter().filter_map(|address| Some((address.value.parse().ok()?, address.host.clone())));
        Self {
            version: entry.metadata.resource_version.clone().unwrap_or_default(),
            created,
            hosts: hosts.cloned().collect(),
            has: has.collect(),
            own: entry.spec.addresses.iter().filter_map(|address| address.parse().ok()).collect(),
        }
    }

    fn claims(&self, name: &EntryName) -> impl Iterator<Item = (IpAddr, Claim)> {
        // What somebody has written down is theirs, before all that was allocated.
        let own = self.own.iter().map(|ip| (*ip, (i64::MIN, name.clone(), String::new())));
        own.chain(self.has.iter().map(|(ip, host)| (*ip, (self.created, name.clone(), host.clone()))))
    }
}

impl Addresses {
    fn put(&mut self, name: &EntryName, known: Known) -> BTreeSet<EntryName> {
        let mut concerned = self.remove(name);
        for (ip, claim) in known.claims(name) {
            let claims = self.claims.entry(ip).or_default();
            concerned.extend(claims.iter().map(|(_, other, _)| other.clone()));
            claims.insert(claim);
        }
        self.known.insert(name.clone(), known);
        concerned.insert(name.clone());
        concerned
    }

    fn remove(&mut self, name: &EntryName) -> BTreeSet<EntryName> {
        let mut concerned = BTreeSet::from([name.clone()]);
        let Some(known) = self.known.remove(name) else { return concerned };
        for (ip, claim) in known.claims(name) {
            if let Some(claims) = self.claims.get_mut(&ip) {
                claims.remove(&claim);
                concerned.extend(claims.iter().map(|(_, other, _)| other.clone()));
                if claims.is_empty() {
                    self.claims.remove(&ip);
                }
            }
        }
        concerned
    }

    /// Returns the address of one family that a host has and may keep.
    fn kept(&self, name: &EntryName, known: &Known, host: &str, is_v4: bool) -> Option<IpAddr> {
        let of_host = known.has.iter().filter(|(ip, of)| of == host && ip.is_ipv4() == is_v4);
        let mut kept = of_host.map(|(ip, _)| *ip).filter(|ip| {
            let first = self.claims.get(ip).and_then(BTreeSet::first);
            first.is_some_and(|(_, holder, of)| holder == name && of == host)
        });
        kept.next()
    }

    /// Returns a free address.
    fn choose(&self, name: &EntryName, host: &str, is_v4: bool, taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        let start = hash(&format!("{}/{}/{host}", name.0.0, name.0.1)) % SIZE;
        let mut all = (0..SIZE).map(|step| address((start + step) % SIZE, is_v4));
        all.find(|ip| !self.claims.contains_key(ip) && !taken.contains(ip))
    }

    /// Returns what the status is to have: for each host one address of each family. Nothing if it has that.
    fn wanted(&self, name: &EntryName) -> Option<Vec<(IpAddr, String)>> {
        let known = self.known.get(name).filter(|known| self.is_complete && !known.hosts.is_empty())?;
        let (mut wanted, mut taken) = (Vec::new(), BTreeSet::new());
        for host in &known.hosts {
            for is_v4 in [true, false] {
                let address = self.kept(name, known, host, is_v4);
                let Some(address) = address.or_else(|| self.choose(name, host, is_v4, &taken)) else {
                    if !self.said_exhausted.swap(true, Ordering::Relaxed) {
                        tracing::error!(object = %name, host, "no address is left for ServiceEntries");
                    }
                    continue;
                };
                taken.insert(address);
                wanted.push((address, host.clone()));
            }
        }
        let same =
            wanted.len() == known.has.len() && wanted.iter().all(|address| known.has.contains(address));
        (!same).then_some(wanted)
    }
}

fn address(number: u32, is_v4: bool) -> IpAddr {
    if is_v4 {
        return Ipv4Addr::from(FIRST_V4 + number).into();
    }
    let low = u16::try_from(number + 1).unwrap_or(u16::MAX);
    Ipv6Addr::new(V6[0], V6[1], 0, 0, 0, 0, 0, low).into()
}

/// Spreads names over numbers, the same in every process and version (FNV-1a).
fn hash(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

impl Domain for Addresses {
    type Key = EntryName;
    type Object = ServiceEntry;
    type Wanted = ();

    fn take_in(&mut self, seen: Seen<ServiceEntry>) -> Option<Vec<EntryName>> {
        match seen {
            Seen::All(all) => {
                self.known.clear();
                self.claims.clear();
                for entry in &all {
                    self.put(&EntryName(name_of(entry)), Known::of(entry));
                }
                self.is_complete = true;
                None
            }
            Seen::Is(entry) => {
                let (name, known) = (EntryName(name_of(&entry)), Known::of(&entry));
                if self.known.get(&name).is_some_and(|before| is_older(&known.version, &before.version)) {
                    return Some(Vec::new());
                }
                Some(self.put(&name, known).into_iter().collect())
            }
            Seen::Gone(name) => Some(self.remove(&EntryName(name)).into_iter().collect()),
        }
    }

    fn want(&mut self, (): ()) {}

    fn keys(&self) -> Vec<EntryName> {
        self.known.keys().cloned().collect()
    }

    fn has(&self, key: &EntryName) -> bool {
        self.known.contains_key(key)
    }

    fn difference(&self, key: &EntryName) -> Option<Apply> {
        let (wanted, known) = (self.wanted(key)?, self.known.get(key)?);
        let (namespace, name) = &key.0;
        let version = ServiceEntry::api_version(&());
        let addresses: Vec<_> =
            wanted.iter().map(|(ip, host)| json!({ "value": ip.to_string(), "host": host })).collect();
        Some(Apply {
            path: format!("/apis/{version}/namespaces/{namespace}/serviceentries/{name}/status"),
            body: json!({
                "apiVersion": version, "kind": "ServiceEntry",
                "metadata": { "name": name, "namespace": namespace, "resourceVersion": known.version },
                "status": { "addresses": addresses },
            }),
            // Which addresses these are may change until they are written, and is nobody's fault.
            want: stands_for(&known.hosts),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    fn entry(name: &str, version: u32, age: u32, hosts: &[&str], addresses: &Value) -> ServiceEntry {
        serde_json::from_value(json!({
            "metadata": {
                "namespace": "shop", "name": name, "resourceVersion": version.to_string(),
                "creationTimestamp": format!("2026-01-01T00:00:{:02}Z", 59 - age),
            },
            "spec": {"hosts": hosts, "resolution": "DNS"}, "status": {"addresses": addresses},
        }))
        .unwrap()
    }

    fn key(name: &str) -> EntryName {
        EntryName(("shop".to_owned(), name.to_owned()))
    }

    fn written(domain: &Addresses, name: &str) -> Option<Value> {
        domain.difference(&key(name)).map(|apply| apply.body["status"]["addresses"].clone())
    }

    /// Writes whatever differs, as the keeper does, until nothing does.
    fn settle(domain: &mut Addresses, objects: &mut BTreeMap<String, ServiceEntry>) -> usize {
        let mut writes = 0;
        while let Some(key) = domain.keys().into_iter().find(|key| domain.difference(key).is_some()) {
            let apply = domain.difference(&key).unwrap();
            let object = objects.get_mut(&key.0.1).unwrap();
            let status = json!({ "addresses": apply.body["status"]["addresses"] });
            object.status = serde_json::from_value(status).unwrap();
            let version: u32 = object.metadata.resource_version.as_ref().unwrap().parse().unwrap();
            object.metadata.resource_version = Some((version + 1).to_string());
            domain.take_in(Seen::Is(object.clone()));
            writes += 1;
            assert!(writes < 1000, "it does not come to an end");
        }
        writes
    }

    #[test]
    fn hosts_get_an_address_of_each_family_and_keep_it() {
        let mut domain = Addresses::default();
        let none = json!([]);
        domain.take_in(Seen::Is(entry("a", 1, 0, &["a.test"], &none)));
        assert_eq!(written(&domain, "a"), None, "not all are known, so that nobody knows what is free");
        domain.take_in(Seen::All(vec![entry("a", 1, 0, &["a.test", "*.b.test"], &none)]));
        let first = written(&domain, "a").unwrap();
        assert_eq!(first.as_array().unwrap().len(), 2, "{first}");
        assert!(first[0]["value"].as_str().unwrap().starts_with("240.240.") && first[0]["host"] == "a.test");
        assert!(first[1]["value"].as_str().unwrap().starts_with("2001:2::"), "{first}");
        let apply = domain.difference(&key("a")).unwrap();
        assert_eq!(apply.path, "/apis/networking.istio.io/v1/namespaces/shop/serviceentries/a/status");

        domain.take_in(Seen::Is(entry("a", 2, 0, &["a.test"], &first)));
        assert_eq!(written(&domain, "a"), None);
        // A second host leaves the first one its address, and a host that is gone gives its back.
        domain.take_in(Seen::Is(entry("a", 3, 0, &["a.test", "c.test"], &first)));
        let both = written(&domain, "a").unwrap();
        assert_eq!(both.as_array().unwrap().len(), 4);
        assert_eq!([&both[0], &both[1]], [&first[0], &first[1]]);
        domain.take_in(Seen::Is(entry("a", 4, 0, &["c.test"], &both)));
        assert_eq!(written(&domain, "a").unwrap(), json!([both[2], both[3]]));
        // Whose address is given by somebody else is left alone.
        let theirs =
            json!([{"value": "240.240.7.7", "host": "c.test"}, {"value": "2001:2::77", "host": "c.test"}]);
        domain.take_in(Seen::Is(entry("a", 5, 0, &["c.test"], &theirs)));
        assert_eq!(written(&domain, "a"), None);
    }

    #[test]
    fn who_wants_none_gets_none() {
        let mut domain = Addresses::default();
        let mut own = entry("own", 1, 0, &["a.test"], &json!([]));
        own.spec.addresses = vec!["10.0.0.1".to_owned()];
        let mut out = entry("out", 1, 0, &["a.test"], &json!([]));
        let label = ("networking.istio.io/enable-autoallocate-ip".to_owned(), "false".to_owned());
        out.metadata.labels = Some(BTreeMap::from([label]));
        let mut none = entry("none", 1, 0, &["a.test"], &json!([]));
        none.spec.resolution = Some(k8s_api::service_entry::Resolution::None);
        domain.take_in(Seen::All(vec![own, out, none, entry("wild", 1, 0, &["*.test"], &json!([]))]));
        assert!(domain.keys().iter().all(|key| domain.difference(key).is_none()));
    }

    #[test]
    fn of_two_that_have_the_same_the_older_keeps_it() {
        let has =
            json!([{"value": "240.240.1.1", "host": "a.test"}, {"value": "2001:2::1", "host": "a.test"}]);
        let (old, young) = (entry("z", 1, 9, &["a.test"], &has), entry("a", 1, 1, &["a.test"], &has));
        let mut domain = Addresses::default();
        domain.take_in(Seen::All(vec![young.clone()]));
        assert_eq!(written(&domain, "a"), None);
        let concerned = domain.take_in(Seen::Is(old)).unwrap();
        assert_eq!(concerned, [key("a"), key("z")]);
        assert_eq!(written(&domain, "z"), None);
        let other = written(&domain, "a").unwrap();
        assert!(other[0] != has[0] && other[1] != has[1], "{other}");
        // What somebody has written down for themselves is not given to others.
        let mut own = entry("own", 1, 0, &["b.test"], &json!([]));
        own.spec.addresses = vec![other[0]["value"].as_str().unwrap().to_owned()];
        domain.take_in(Seen::Is(own));
        assert_ne!(written(&domain, "a").unwrap()[0], other[0]);
        domain.take_in(Seen::Gone(("shop".to_owned(), "z".to_owned())));
        assert_eq!(written(&domain, "a"), None, "there is nobody else any more");
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn addresses_are_distinct_and_stay_whatever_happens(
            edits in prop::collection::vec((0_u8..12, prop::collection::btree_set(0_u8..6, 0..4)), 1..40),
        ) {
            let (mut domain, mut objects) = (Addresses::default(), BTreeMap::new());
            domain.take_in(Seen::All(Vec::new()));
            let mut version = 0;
            for (name, hosts) in edits {
                version += 100;
                let name = format!("e{name}");
                let hosts: Vec<String> = hosts.iter().map(|host| format!("h{host}.test")).collect();
                let before: BTreeMap<String, Vec<(IpAddr, String)>> =
                    objects.iter().map(|(name, object): (&String, &ServiceEntry)| (name.clone(), Known::of(object).has)).collect();
                if hosts.is_empty() {
                    objects.remove(&name);
                    domain.take_in(Seen::Gone(("shop".to_owned(), name.clone())));
                } else {
                    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
                    let mut object = entry(&name, version, 0, &hosts, &json!([]));
                    object.status = objects.get(&name).and_then(|known| known.status.clone());
                    objects.insert(name.clone(), object.clone());
                    domain.take_in(Seen::Is(object));
                }
                let writes = settle(&mut domain, &mut objects);
                prop_assert!(writes <= 1, "one edit led to {writes} writes");
                let mut all = BTreeSet::new();
                for (of, object) in &objects {
                    let has = Known::of(object).has;
                    prop_assert_eq!(has.len(), 2 * object.spec.hosts.len());
                    for (ip, host) in has {
                        prop_assert!(all.insert(ip), "{} has {} twice", of, ip);
                        let same_host = before.get(of).into_iter().flatten().find(|(known, h)| *h == host && known.is_ipv4() == ip.is_ipv4());
                        prop_assert!(same_host.is_none_or(|(known, _)| *known == ip), "an address has changed");
                    }
                }
            }
        }
    }
}
