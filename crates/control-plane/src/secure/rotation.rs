//! What is to be done about the root: begins, continues, and takes orders. No I/O.

use super::store::Documents;
use anyhow::{Context as _, Result, bail, ensure};
use ca::rotation::{Evidence, Phase, Progress, RetireWhen, Settings};
use ca::{CaCertificate, Fingerprint, Rotation, UnixTime};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::time::Duration;

/// Nothing is known of how long certificates lived that another process issued: this is what agents ask for.
const USUAL_TTL: Duration = Duration::from_secs(24 * 3600);

/// What is kept beside the authority.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct State {
    /// The longest life of certificates that were issued.
    #[serde(default)]
    pub(super) longest_ttl_seconds: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<Value>,
    /// The root that was to take over until that was rolled back: it does not begin again by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) declined: Option<String>,
}

impl State {
    /// Reads it, and the rotation in it.
    pub(super) fn read(documents: &Documents) -> Result<(Self, Option<Rotation>)> {
        let Some(text) = &documents.state else { return Ok((Self::default(), None)) };
        let state: Self = serde_json::from_str(text).context("rotation.json")?;
        let rotation = state.rotation.as_ref().map(|rotation| Rotation::from_json(&rotation.to_string()));
        let rotation = rotation.transpose().context("rotation.json")?;
        Ok((state, rotation))
    }

    /// Returns it as it is kept, with another rotation.
    pub(super) fn with(
        &self,
        rotation: Option<&Rotation>,
        declined: Option<String>,
        longest: Duration,
    ) -> Result<String> {
        let rotation = rotation.map(|rotation| serde_json::from_str(&rotation.to_json())).transpose()?;
        let longest_ttl_seconds = self.longest_ttl_seconds.max(longest.as_secs());
        let mut text = serde_json::to_string_pretty(&Self { longest_ttl_seconds, rotation, declined })?;
        text.push('\n');
        Ok(text)
    }

    /// Returns for how long anybody may have a certificate that nothing is known of here.
    pub(super) fn leaf_lifetime(&self, default: Duration, max: Duration) -> Duration {
        USUAL_TTL.min(max).max(default).max(Duration::from_secs(self.longest_ttl_seconds))
    }
}

/// What an operator may order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Order {
    /// The next step, whatever is in its way.
    Force { by: String },
    /// The way back.
    RollBack,
    /// The way forward again.
    Resume,
}

impl Order {
    fn parse(text: &str) -> Result<Self> {
        let text = text.trim();
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        match word {
            "force" => {
                ensure!(!rest.trim().is_empty(), "force: say who orders it, and why: force NAME: REASON");
                Ok(Self::Force { by: rest.trim().to_owned() })
            }
            "rollback" if rest.is_empty() => Ok(Self::RollBack),
            "resume" if rest.is_empty() => Ok(Self::Resume),
            _ => bail!("{word:?} is not an order: force NAME: REASON, rollback, or resume"),
        }
    }
}

/// The roots of what is kept.
pub(super) struct Roots<'a> {
    /// Of the authority.
    pub(super) current: &'a CaCertificate,
    /// Of the one that is to take its place.
    pub(super) next: Option<&'a CaCertificate>,
}

/// What is to be done.
pub(super) enum Decision {
    /// Nothing: how far it is, if a rotation is under way.
    Wait(Option<Box<Progress>>),
    /// This takes the place of what is kept.
    Change(Box<Change>),
    /// The order cannot be carried out.
    Refuse(String),
}

/// What takes the place of what is kept.
pub(super) struct Change {
    pub(super) rotation: Rotation,
    /// Why, for people.
    pub(super) why: String,
    /// As in [`State`].
    pub(super) declined: Option<String>,
}

impl Decision {
    fn change(rotation: Rotation, why: String, declined: Option<String>) -> Self {
        Self::Change(Box::new(Change { rotation, why, declined }))
    }
}

/// Decides.
///
/// # Errors
///
/// If what is kept does not go together.
pub(super) fn decide(
    rotation: Option<&Rotation>,
    declined: Option<&str>,
    roots: &Roots<'_>,
    order: Option<&str>,
    evidence: &Evidence<'_>,
    settings: &Settings,
    now: UnixTime,
) -> Result<Decision> {
    let Some(rotation) = rotation else {
        let current = roots.current.fingerprint();
        return match roots.next.filter(|next| next.fingerprint() != current) {
            Some(next) => begin(&Rotation::stable(roots.current.clone(), now), next, now),
            None => Ok(order.map_or(Decision::Wait(None), nothing_to_order)),
        };
    };
    check_signer(rotation, roots)?;
    if rotation.phase() == Phase::Stable {
        return match roots.next.filter(|next| next.fingerprint() != rotation.signer()) {
            Some(next) if declined == Some(next.fingerprint().to_string().as_str()) => match order {
                Some(order) if Order::parse(order).is_ok_and(|order| order == Order::Resume) => {
                    begin(rotation, next, now)
                }
                order => Ok(order.map_or(Decision::Wait(None), nothing_to_order)),
            },
            Some(next) => begin(rotation, next, now),
            None => Ok(order.map_or(Decision::Wait(None), nothing_to_order)),
        };
    }
    let kept = declined.map(str::to_owned);
    if let Some(order) = order {
        let order = match Order::parse(order) {
            Ok(order) => order,
            Err(error) => return Ok(Decision::Refuse(error.to_string())),
        };
        let (changed, why, declined) = match &order {
            Order::Force { by } => {
                (rotation.force(by, evidence, settings, now), format!("ordered by {by}"), kept)
            }
            Order::RollBack => {
                let declined = rotation.newcomer().map(|root| root.to_string());
                (rotation.roll_back(), "rolled back by order".to_owned(), declined)
            }
            Order::Resume => (rotation.resume(now), "resumed by order".to_owned(), None),
        };
        return Ok(match changed {
            Ok(changed) => Decision::change(changed, why, declined),
            Err(error) => Decision::Refuse(error.to_string()),
        });
    }
    Ok(match rotation.next(evidence, settings, now) {
        Ok(next) => Decision::change(next, "everybody is ready".to_owned(), kept),
        Err(progress) => Decision::Wait(Some(progress)),
    })
}

fn nothing_to_order(order: &str) -> Decision {
    match Order::parse(order) {
        Ok(_) => Decision::Refuse("no rotation is under way".to_owned()),
        Err(error) => Decision::Refuse(error.to_string()),
    }
}

fn begin(from: &Rotation, to: &CaCertificate, now: UnixTime) -> Result<Decision> {
    let begun = from.begin(to.clone(), now).context("the next authority cannot take over")?;
    Ok(Decision::change(begun, format!("\"{}\" is to take over", to.name()), None))
}

/// Whoever is to sign must be here.
fn check_signer(rotation: &Rotation, roots: &Roots<'_>) -> Result<()> {
    let signer = rotation.signer();
    let is_here = |root: Option<&CaCertificate>| root.is_some_and(|root| root.fingerprint() == signer);
    ensure!(
        is_here(Some(roots.current)) || is_here(roots.next),
        "root {signer} is to sign, says rotation.json, but its key is neither that of the authority nor that of the \
         next one. Put it back; or remove rotation.json to go on with another root at once, which fails handshakes"
    );
    Ok(())
}

/// Returns how rotations are paced.
pub(super) fn settings(leaf_lifetime: Duration, replica_lag: Duration) -> Settings {
    Settings { leaf_lifetime, replica_lag, retire: RetireWhen::Replaced }
}

/// Returns the root that signs.
pub(super) fn signer(rotation: Option<&Rotation>, current: Fingerprint) -> Fingerprint {
    rotation.map_or(current, Rotation::signer)
}
