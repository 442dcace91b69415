//! Rules and policies: objects that mean something by themselves, and VirtualServices that lean on others.
//!
//! A form of an object that is refused does not take away the last one that was not: it stays in use, and the
//! findings say so.

use crate::store::Index;
use k8s_api::object::Object;
use model::{Kind, ObjectKey, Origin, Rejection, Secret, VirtualService};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use translate::{Translated, delegate};

/// VirtualServices as they were translated, before delegation.
#[derive(Debug, Default)]
pub(crate) struct Rules {
    virtual_services: BTreeMap<ObjectKey, Translation>,
    /// Those whose merged form has to be worked out.
    dirty: BTreeSet<ObjectKey>,
    /// The delegates that each root asks for, found or not.
    delegates: BTreeMap<ObjectKey, BTreeSet<ObjectKey>>,
}

#[derive(Debug)]
struct Translation {
    /// The last form that was not refused.
    good: Option<VirtualService>,
    origin: Origin,
    rejections: Vec<Rejection>,
    warnings: Vec<Rejection>,
    is_refused: bool,
}

impl Index {
    /// Takes in a rule or policy.
    pub(crate) fn rules_apply(&mut self, key: &ObjectKey, source: &Arc<Object>, origin: &Origin) {
        let context = &self.context;
        match source.as_ref() {
            Object::VirtualService(object) => {
                let translated = translate::virtual_service(context, object);
                self.take_virtual_service(key, source, origin, translated);
            }
            Object::DestinationRule(object) => {
                let translated = translate::destination_rule(context, object);
                let known = self.builder.view().has_destination_rule(key);
                if let Some(rule) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_destination_rule(rule);
                }
            }
            Object::Gateway(object) => {
                let translated = translate::gateway(context, object);
                let known = self.builder.view().has_gateway(key);
                if let Some(gateway) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_gateway(gateway);
                }
            }
            Object::Sidecar(object) => {
                let translated = translate::sidecar(context, object);
                let known = self.builder.view().has_sidecar(key);
                if let Some(sidecar) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_sidecar(sidecar);
                }
            }
            Object::PeerAuthentication(object) => {
                let translated = translate::peer_authentication(context, object);
                let known = self.builder.view().has_peer_authentication(key);
                if let Some(policy) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_peer_authentication(policy);
                }
            }
            Object::ReferenceGrant(object) => {
                let translated = translate::reference_grant(object);
                let known = self.builder.view().has_reference_grant(key);
                if let Some(grant) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_reference_grant(grant);
                }
            }
            Object::Secret(object) => self.take_secret(key, source, origin, translate::secret(object)),
            Object::ConfigMap(object) => {
                self.take_secret(key, source, origin, translate::config_map(object));
            }
            _ => {}
        }
    }

    /// Takes in certificates. A part of them is better than nothing, and worse than the whole that was there before.
    fn take_secret(
        &mut self,
        key: &ObjectKey,
        source: &Arc<Object>,
        origin: &Origin,
        mut translated: Translated<Secret>,
    ) {
        let known = self.builder.view().has_secret(key);
        let ends = translated.value.as_ref().and_then(|secret| secret.not_after);
        if let Some((ends, now)) = ends.zip(self.now)
            && ends < now
        {
            let reason = format!("the certificate has expired {} seconds ago", now - ends);
            let finding = Rejection { object: key.clone(), field: "data".to_owned(), reason };
            if known { &mut translated.rejections } else { &mut translated.warnings }.push(finding);
        }
        let is_worse = |rejection: &Rejection| !translate::is_optional(rejection);
        if known && translated.rejections.iter().any(is_worse) {
            translated.value = None;
        } else if translated.value.is_none() && translated.rejections.is_empty() {
            // It holds nothing of the kind, and nobody says that it should.
            self.builder.remove_secret(key);
        }
        if let Some(secret) = self.judge(key, source, origin, translated, known) {
            self.builder.set_secret(secret);
        }
    }

    /// Notes the findings and returns what is to be used from now on, if it is anything new.
    fn judge<T>(
        &mut self,
        key: &ObjectKey,
        source: &Arc<Object>,
        origin: &Origin,
        translated: Translated<T>,
        is_known: bool,
    ) -> Option<T> {
        let serves_last_good = translated.value.is_none() && is_known;
        self.note(key, origin, &translated.rejections, &translated.warnings, serves_last_good);
        if translated.value.is_some() {
            self.accepted.insert(source.key(), source.clone());
        }
        translated.value
    }

    /// Removes a rule or policy.
    pub(crate) fn rules_remove(&mut self, key: &ObjectKey) {
        if key.kind == Kind::VirtualService {
            self.rules.virtual_services.remove(key);
            self.rules.touch(key);
        } else {
            self.builder.remove_object(key);
        }
    }

    fn take_virtual_service(
        &mut self,
        key: &ObjectKey,
        source: &Arc<Object>,
        origin: &Origin,
        translated: Translated<VirtualService>,
    ) {
        let Translated { value, rejections, warnings } = translated;
        let is_refused = value.is_none();
        if !is_refused {
            self.accepted.insert(source.key(), source.clone());
        }
        let last = self.rules.virtual_services.remove(key).and_then(|translation| translation.good);
        let translation =
            Translation { good: value.or(last), origin: origin.clone(), rejections, warnings, is_refused };
        self.rules.virtual_services.insert(key.clone(), translation);
        self.rules.touch(key);
    }

    /// Works out the merged form of every VirtualService that a change concerns.
    pub(crate) fn rules_settle(&mut self) {
        for key in std::mem::take(&mut self.rules.dirty) {
            let Some(translation) = self.rules.virtual_services.get(&key) else {
                self.rules.delegates.remove(&key);
                self.builder.remove_virtual_service(&key);
                continue;
            };
            let mut warnings = translation.warnings.clone();
            let merged = translation.good.as_ref().filter(|rule| !rule.hosts.is_empty()).map(|root| {
                delegate::merge(root, &|delegate: &ObjectKey| {
                    self.rules.virtual_services.get(delegate)?.good.as_ref()
                })
            });
            let (origin, rejections) = (translation.origin.clone(), translation.rejections.clone());
            let serves_last_good = translation.is_refused && translation.good.is_some();
            match merged {
                Some(merged) => {
                    warnings.extend(merged.rejections);
                    self.rules.delegates.insert(key.clone(), merged.delegates);
                    self.builder.set_virtual_service(merged.value);
                }
                // Rules for others to use, or nothing that was ever right.
                None => {
                    self.rules.delegates.remove(&key);
                    self.builder.remove_virtual_service(&key);
                }
            }
            self.note(&key, &origin, &rejections, &warnings, serves_last_good);
        }
    }
}

impl Rules {
    /// Marks a VirtualService and those that delegate to it.
    fn touch(&mut self, key: &ObjectKey) {
        let roots = self.delegates.iter().filter(|(_, delegates)| delegates.contains(key));
        let roots: Vec<ObjectKey> = roots.map(|(root, _)| root.clone()).collect();
        self.dirty.extend(roots);
        self.dirty.insert(key.clone());
    }
}
