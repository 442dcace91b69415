//! What replicas tell each other while a root is being replaced: a ConfigMap each.
//!
//! | ConfigMap `weft-ca-replica-NAME` | |
//! | --- | --- |
//! | label `weft.dev/ca-replica` | `true`: by which they are found |
//! | key `report.json` | a [`ReplicaReport`], written by nobody but that replica |

use anyhow::{Context as _, Result};
use ca::UnixTime;
use ca::rotation::{ReplicaReport, Settings};
use controllers::Client;
use std::collections::BTreeMap;
use tracing::warn;

const PREFIX: &str = "weft-ca-replica-";
const LABEL: &str = "weft.dev/ca-replica";
const KEY: &str = "report.json";

/// The replicas of a control plane, seen from one of them.
#[derive(Clone)]
pub(super) struct Replicas {
    pub(super) client: Client,
    pub(super) namespace: String,
    /// The name of this one.
    pub(super) name: String,
}

impl Replicas {
    /// Returns what the others have written.
    pub(super) async fn others(&self) -> Result<BTreeMap<String, ReplicaReport>> {
        let found = controllers::list_config_maps(&self.client, &self.namespace, LABEL).await?;
        let mut reports = BTreeMap::new();
        for (object, mut data) in found {
            let Some(name) = object.strip_prefix(PREFIX).filter(|name| *name != self.name) else { continue };
            let text = data.remove(KEY).with_context(|| format!("ConfigMap {object} has no {KEY}"))?;
            let report = ReplicaReport::from_json(&text).with_context(|| format!("ConfigMap {object}"))?;
            reports.insert(name.to_owned(), report);
        }
        Ok(reports)
    }

    /// Writes what this one knows.
    pub(super) async fn write(&self, report: &ReplicaReport) -> Result<()> {
        let (object, manager) = (format!("{PREFIX}{}", self.name), format!("weftd-{}", self.name));
        let data = BTreeMap::from([(KEY, report.to_json()?)]);
        controllers::apply_config_map(&self.client, &self.namespace, &object, &manager, LABEL, &data).await?;
        Ok(())
    }

    /// Removes what is left of replicas that nobody has to wait for any more.
    pub(super) async fn tidy(
        &self,
        others: &BTreeMap<String, ReplicaReport>,
        settings: &Settings,
        now: UnixTime,
    ) {
        for (name, report) in others {
            if report.counts(settings, now) {
                continue;
            }
            let object = format!("{PREFIX}{name}");
            if let Err(error) = controllers::delete_config_map(&self.client, &self.namespace, &object).await {
                warn!(%error, "a replica that is gone for good stays on the list");
            }
        }
    }
}
