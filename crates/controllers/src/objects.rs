//! What is known of one kind's objects.

use crate::kinds::{Kind, Watched};
use index::{Change, Reset, Sourced};
use k8s_api::object::{Object, ObjectKey};
use kube::core::DeserializeGuard;
use std::collections::{BTreeMap, HashMap};
use std::marker::PhantomData;

/// Makes changes of what a source sees. It does no I/O.
pub(crate) trait Follower: Send + 'static {
    /// What the source watches.
    type Object: Watched;

    /// A complete list.
    fn replace(&mut self, objects: Vec<DeserializeGuard<Self::Object>>) -> Option<Change>;

    /// An object that is new or different.
    fn apply(&mut self, object: DeserializeGuard<Self::Object>) -> Option<Change>;

    /// An object that is gone.
    fn delete(&mut self, object: &DeserializeGuard<Self::Object>) -> Option<Change>;

    /// Returns the number of objects.
    fn len(&self) -> usize;

    /// Returns what cannot be decoded, and why.
    fn undecodable(&self) -> &BTreeMap<String, String>;
}

/// Namespace and name.
type Name = (String, String);

/// The objects of a kind, in their last good form.
pub(crate) struct Objects<K> {
    known: HashMap<Name, Sourced>,
    undecodable: BTreeMap<String, String>,
    kind: PhantomData<fn() -> K>,
}

impl<K: Kind> Objects<K> {
    pub(crate) fn new() -> Self {
        Self { known: HashMap::new(), undecodable: BTreeMap::new(), kind: PhantomData }
    }

    /// Returns the object to use: nothing if it is of no use, the last good form if it cannot be decoded, and the one
    /// that is known if it is the same.
    fn judge(&mut self, object: DeserializeGuard<K>) -> Option<Sourced> {
        let key = ObjectKey::of(&object);
        let label = key.to_string();
        let known = self.known.get(&(key.namespace.clone(), key.name.clone()));
        match object.0 {
            Ok(object) => {
                self.undecodable.remove(&label);
                let object = object.into_object()?;
                match known {
                    Some(known) if *known.object == object => Some(Sourced { unread: None, ..known.clone() }),
                    _ => Some(Sourced::from_api(object)),
                }
            }
            Err(invalid) => {
                let known = known.filter(|known| !matches!(*known.object, Object::Other(_)));
                // The index says so to people, along with what else is wrong with objects.
                note_undecodable(&mut self.undecodable, label, &invalid.error);
                Some(match known {
                    Some(known) => Sourced { unread: Some(invalid.error.into()), ..known.clone() },
                    None => Sourced::unread(key, invalid.error),
                })
            }
        }
    }
}

impl<K: Kind> Follower for Objects<K> {
    type Object = K;

    fn replace(&mut self, objects: Vec<DeserializeGuard<K>>) -> Option<Change> {
        let before = std::mem::take(&mut self.undecodable);
        for object in objects.iter().filter(|object| object.0.is_err()) {
            self.undecodable.extend(
                before.get_key_value(&ObjectKey::of(object).to_string()).map(|(k, v)| (k.clone(), v.clone())),
            );
        }
        let mut known = HashMap::with_capacity(objects.len());
        let mut told = Vec::with_capacity(objects.len());
        for object in objects {
            let name = name_of(&object);
            if let Some(sourced) = self.judge(object) {
                told.push(sourced.clone());
                known.insert(name, sourced);
            }
        }
        self.known = known;
        Some(Change::Reset(Reset::Kind(K::NAME), told))
    }

    fn apply(&mut self, object: DeserializeGuard<K>) -> Option<Change> {
        let (key, name) = (ObjectKey::of(&object), name_of(&object));
        let Some(sourced) = self.judge(object) else {
            return self.known.remove(&name).map(|_| Change::Delete(key));
        };
        let before = self.known.insert(name, sourced.clone());
        let is_news = before.is_none_or(|before| before != sourced);
        is_news.then_some(Change::Apply(sourced))
    }

    fn delete(&mut self, object: &DeserializeGuard<K>) -> Option<Change> {
        let key = ObjectKey::of(object);
        self.undecodable.remove(&key.to_string());
        self.known.remove(&name_of(object)).map(|_| Change::Delete(key))
    }

    fn len(&self) -> usize {
        self.known.values().filter(|known| !matches!(*known.object, Object::Other(_))).count()
    }

    fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }
}

/// Notes that an object cannot be decoded. Returns whether that is news.
pub(crate) fn note_undecodable(
    undecodable: &mut BTreeMap<String, String>,
    label: String,
    error: &str,
) -> bool {
    undecodable.insert(label, error.to_owned()).is_none_or(|known| known != error)
}

fn name_of<K: Watched>(object: &DeserializeGuard<K>) -> Name {
    let metadata = kube::Resource::meta(object);
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}
