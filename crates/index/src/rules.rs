//! Rules and policies: objects that mean something by themselves, and VirtualServices that lean on others.
//!
//! A form of an object that is refused does not take away the last one that was not: it stays in use, and the
//! findings say so.

use crate::store::Index;
use k8s_api::object::Object;
use model::{Kind, ObjectKey, Origin, Rejection, VirtualService};
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
            Object::Secret(object) => {
                let translated = translate::secret(object);
                let known = self.builder.view().has_secret(key);
                if let Some(secret) = self.judge(key, source, origin, translated, known) {
                    self.builder.set_secret(secret);
                }
            }
            _ => {}
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
