//! Which service accounts there are.

use crate::kinds::Absence;
use crate::objects::{Follower, note_undecodable};
use crate::outage::Outage;
use crate::source::{Progress, Source, everywhere};
use crate::state::{Reporter, States};
use index::Change;
use k8s_api::core::ServiceAccount;
use k8s_api::object::ObjectKey;
use kube::Client;
use kube::core::DeserializeGuard;
use parking_lot::RwLock;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};

const SOURCE: &str = "ServiceAccount";

/// The service accounts of a cluster. Cloning shares them; empty until they have been listed.
#[derive(Clone, Debug, Default)]
pub struct ServiceAccounts(Arc<RwLock<HashMap<Name, String>>>);

/// Namespace and name.
type Name = (String, String);

impl ServiceAccounts {
    /// Returns whether there is a service account with this name and this unique id.
    pub fn has(&self, namespace: &str, name: &str, uid: &str) -> bool {
        self.0.read().get(&(namespace.to_owned(), name.to_owned())).is_some_and(|known| known == uid)
    }

    /// Follows the accounts of a cluster, for as long as the future lives.
    pub async fn follow(self, client: Client) {
        let (sender, mut changes) = mpsc::channel(1);
        let (states, _) = watch::channel(States::new());
        let source = Source {
            api: everywhere::<ServiceAccount>(&client),
            fields: None,
            labels: None,
            absence: Absence::Forbidden,
            follower: Accounts { known: self, undecodable: BTreeMap::new() },
            reporter: Reporter::new(SOURCE, states),
            outage: Outage::new(client, sender.clone()),
            sender,
            progress: Progress::new(),
        };
        // Accounts are of no interest to a mesh, so there are no changes but that they have been listed,
        // and that there was an outage.
        tokio::join!(source.run(), async { while changes.recv().await.is_some() {} });
    }
}

struct Accounts {
    known: ServiceAccounts,
    undecodable: BTreeMap<String, String>,
}

fn entry_of(object: &DeserializeGuard<ServiceAccount>) -> (Name, Option<String>) {
    let metadata = kube::Resource::meta(object);
    let name = (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default());
    (name, metadata.uid.clone())
}

impl Accounts {
    /// What cannot be decoded is not known: its tokens are for the API server to judge.
    fn judge(&mut self, object: &DeserializeGuard<ServiceAccount>) -> (Name, Option<String>) {
        let label = ObjectKey::of(object).to_string();
        let (name, uid) = entry_of(object);
        match &object.0 {
            Ok(_) => {
                self.undecodable.remove(&label);
                (name, uid)
            }
            Err(invalid) => {
                note_undecodable(&mut self.undecodable, label, &invalid.error);
                (name, None)
            }
        }
    }
}

impl Follower for Accounts {
    type Object = ServiceAccount;

    fn replace(&mut self, objects: Vec<DeserializeGuard<ServiceAccount>>) -> Option<Change> {
        let entries = objects.iter().map(|object| self.judge(object));
        let known = entries.filter_map(|(name, uid)| Some((name, uid?))).collect();
        *self.known.0.write() = known;
        None
    }

    fn apply(&mut self, object: DeserializeGuard<ServiceAccount>) -> Option<Change> {
        let (name, uid) = self.judge(&object);
        let mut known = self.known.0.write();
        match uid {
            Some(uid) => known.insert(name, uid),
            None => known.remove(&name),
        };
        None
    }

    fn delete(&mut self, object: &DeserializeGuard<ServiceAccount>) -> Option<Change> {
        self.undecodable.remove(&ObjectKey::of(object).to_string());
        self.known.0.write().remove(&entry_of(object).0);
        None
    }

    fn len(&self) -> usize {
        self.known.0.read().len()
    }

    fn undecodable(&self) -> &BTreeMap<String, String> {
        &self.undecodable
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn account(name: &str, uid: &str) -> DeserializeGuard<ServiceAccount> {
        let object = json!({
            "apiVersion": "v1", "kind": "ServiceAccount", "automountServiceAccountToken": false,
            "metadata": { "name": name, "namespace": "shop", "uid": uid },
        });
        serde_json::from_value(object).unwrap()
    }

    #[test]
    fn an_account_of_the_same_name_is_another() {
        let known = ServiceAccounts::default();
        let mut accounts = Accounts { known: known.clone(), undecodable: BTreeMap::new() };
        assert!(!known.has("shop", "cart", "1"));
        assert!(accounts.replace(vec![account("cart", "1"), account("till", "2")]).is_none());
        assert!(known.has("shop", "cart", "1") && known.has("shop", "till", "2"));
        accounts.apply(account("cart", "3"));
        assert!(known.has("shop", "cart", "3") && !known.has("shop", "cart", "1"));
        accounts.delete(&account("cart", "3"));
        assert!(!known.has("shop", "cart", "3"));
        accounts.replace(vec![]);
        assert_eq!(accounts.len(), 0);
    }
}
