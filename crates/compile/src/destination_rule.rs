//! Which DestinationRule applies to a host, and what its policy is for one port and subset.
//!
//! Rules are looked for in the client's namespace, then in the service's, then in the root namespace; the first that
//! has any for the host settles it. Within a namespace the most specific host wins, and rules for one host are one rule:
//! their subsets are united, the oldest policy counts. Seen from elsewhere, only those that are exported alike are.

use crate::audience::OutboundAudience;
use model::destination_rule::{
    ClientTls, ClientTlsMode, ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, PortPolicy,
    ProxyProtocol, RetryBudget, Subset, TrafficPolicy,
};
use model::view::DestinationRuleRow;
use model::{ExportTo, Hostname, Labels, Mesh, MeshConfig, Namespace, ObjectKey};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The rule for a host, made of one or several objects.
#[derive(Clone, Debug, PartialEq)]
pub struct MergedRule {
    /// The objects, oldest first; never empty.
    parts: Vec<Arc<DestinationRule>>,
}

impl MergedRule {
    /// Returns the object that the rule is known by: the oldest.
    pub fn key(&self) -> &ObjectKey {
        &self.parts[0].meta.key
    }

    /// Returns whether it is limited to some workloads.
    pub fn has_workload_selector(&self) -> bool {
        self.parts[0].workload_selector.is_some()
    }

    /// Returns the policy of the host.
    pub fn policy(&self) -> Option<&TrafficPolicy> {
        self.parts.iter().find_map(|part| part.policy.as_ref())
    }

    /// Returns the subsets: those of the oldest object, then those of the others by names that are new.
    pub fn subsets(&self) -> impl Iterator<Item = &Subset> {
        let mut seen: BTreeSet<&str> = BTreeSet::new();
        self.parts.iter().flat_map(|part| part.subsets.iter()).filter(move |subset| seen.insert(&subset.name))
    }

    /// Returns the subset called `name`.
    pub fn subset(&self, name: &str) -> Option<&Subset> {
        if name.is_empty() {
            return None;
        }
        self.parts.iter().flat_map(|part| part.subsets.iter()).find(|subset| subset.name.as_ref() == name)
    }

    /// Returns the policy for a service port, and for a subset of it (the empty name stands for the whole service).
    ///
    /// An entry for the port replaces the policy around it whole. A subset's policy is laid over the host's block by
    /// block; its own entry for the port then replaces the result whole.
    pub fn port_policy(&self, port: u16, subset: &str) -> Blocks<'_> {
        let host = self.policy().map(|policy| port_entry(policy, port).unwrap_or(&policy.base));
        let mut blocks = host.map_or_else(Blocks::default, Blocks::of);
        if let Some(policy) = self.subset(subset).and_then(|subset| subset.policy.as_ref()) {
            blocks = match port_entry(policy, port) {
                Some(entry) => Blocks::of(entry),
                None => blocks.under(&policy.base),
            };
        }
        blocks
    }

    /// Returns the TLS mode that decides whether endpoints of a port are marked as taking mutual TLS.
    ///
    /// Unlike [`MergedRule::port_policy`], an entry for the port that says nothing about TLS leaves the mode of the
    /// policy around it (and so does Istio: such a port is plain text although its cluster could do better).
    pub fn marking_mode(&self, port: u16, subset: &str) -> Option<ClientTlsMode> {
        let mode = |policy: &TrafficPolicy| {
            let entry = port_entry(policy, port).and_then(|entry| entry.tls.as_ref());
            entry.or(policy.base.tls.as_ref()).map(|tls| tls.mode)
        };
        let subset = self.subset(subset).and_then(|subset| subset.policy.as_ref());
        subset.and_then(mode).or_else(|| self.policy().and_then(mode))
    }
}

fn port_entry(policy: &TrafficPolicy, port: u16) -> Option<&PortPolicy> {
    policy.port_level.iter().find(|(number, _)| *number == port).map(|(_, entry)| entry)
}

/// The blocks of the policy that applies to one cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Blocks<'a> {
    /// Balancing.
    pub load_balancer: Option<&'a LoadBalancer>,
    /// Limits.
    pub connection_pool: Option<&'a ConnectionPool>,
    /// Ejection of failing endpoints.
    pub outlier_detection: Option<&'a OutlierDetection>,
    /// TLS to the endpoints.
    pub tls: Option<&'a ClientTls>,
    /// The PROXY protocol version.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Limits on concurrent retries.
    pub retry_budget: Option<&'a RetryBudget>,
}

impl<'a> Blocks<'a> {
    /// Returns the blocks of a policy.
    pub fn of(policy: &'a PortPolicy) -> Self {
        Self {
            load_balancer: policy.load_balancer.as_ref(),
            connection_pool: policy.connection_pool.as_ref(),
            outlier_detection: policy.outlier_detection.as_ref(),
            tls: policy.tls.as_ref(),
            proxy_protocol: policy.proxy_protocol,
            retry_budget: policy.retry_budget.as_ref(),
        }
    }

    /// Returns these blocks, replaced by those that `policy` has.
    fn under(self, policy: &'a PortPolicy) -> Self {
        let over = Self::of(policy);
        Self {
            load_balancer: over.load_balancer.or(self.load_balancer),
            connection_pool: over.connection_pool.or(self.connection_pool),
            outlier_detection: over.outlier_detection.or(self.outlier_detection),
            tls: over.tls.or(self.tls),
            proxy_protocol: over.proxy_protocol.or(self.proxy_protocol),
            retry_budget: over.retry_budget.or(self.retry_budget),
        }
    }

    /// Returns these blocks, with the mesh's (`defaultTrafficPolicy`) in place of those that are absent.
    pub fn or_mesh(self, config: &'a MeshConfig) -> Self {
        Self {
            connection_pool: self.connection_pool.or(config.default_connection_pool.as_ref()),
            outlier_detection: self.outlier_detection.or(config.default_outlier_detection.as_ref()),
            ..self
        }
    }
}

/// Returns the rule for `host`, a service of `service_namespace`, as clients of `audience` see it.
pub fn lookup(
    mesh: &Mesh<'_>,
    audience: &OutboundAudience,
    host: &Hostname,
    service_namespace: &Namespace,
) -> Option<Arc<MergedRule>> {
    let client = Client { namespace: &audience.namespace, selected: Some(&audience.selected_rules) };
    find(mesh, client, host, service_namespace)
}

/// Returns the rule for `host` as it shapes the inbound clusters of workloads in `namespace`. Rules with a workload
/// selector are for clients and do not count.
pub fn lookup_inbound(
    mesh: &Mesh<'_>,
    namespace: &Namespace,
    host: &Hostname,
    service_namespace: &Namespace,
) -> Option<Arc<MergedRule>> {
    find(mesh, Client { namespace, selected: None }, host, service_namespace)
}

#[derive(Clone, Copy)]
struct Client<'a> {
    namespace: &'a Namespace,
    /// The rules with a workload selector that select the client; none for inbound use.
    selected: Option<&'a BTreeSet<ObjectKey>>,
}

fn find(
    mesh: &Mesh<'_>,
    client: Client<'_>,
    host: &Hostname,
    service_namespace: &Namespace,
) -> Option<Arc<MergedRule>> {
    let root = &mesh.config().root_namespace;
    let own = pool(mesh, client.namespace, host, true, |row| {
        // In the root namespace only private rules count as its own: its public ones are defaults for the mesh, and
        // must not hide what a service's namespace says.
        let applies_at_home = row.export_to.includes(&row.key.namespace);
        applies_at_home && (client.namespace != root || is_private(row))
    });
    if !own.is_empty() {
        return choose(client, own);
    }
    for namespace in [service_namespace, root] {
        let mut exported = pool(mesh, namespace, host, false, |row| !is_private(row));
        exported.retain(|rule| rule.export_to.includes(client.namespace));
        if !exported.is_empty() {
            return choose(client, exported);
        }
    }
    None
}

/// Whether only the rule's own namespace may see it.
fn is_private(row: &DestinationRuleRow) -> bool {
    match &row.export_to {
        ExportTo::Namespaces(namespaces) => namespaces.len() == 1 && namespaces.contains(&row.key.namespace),
        ExportTo::All | ExportTo::Nobody => false,
    }
}

/// Rules for one host that are one rule.
struct Candidate {
    export_to: ExportTo,
    selector: Option<Labels>,
    parts: Vec<Arc<DestinationRule>>,
}

/// Returns the rules of `namespace` that `belongs` admits and that are for the most specific host that covers `host`,
/// merged, oldest first. Who else may see them does not keep them apart at home.
fn pool(
    mesh: &Mesh<'_>,
    namespace: &Namespace,
    host: &Hostname,
    at_home: bool,
    belongs: impl Fn(&DestinationRuleRow) -> bool,
) -> Vec<Candidate> {
    let mut rows: Vec<&Arc<DestinationRuleRow>> =
        mesh.destination_rules_for(namespace, host).filter(|row| belongs(row)).collect();
    let Some(best) = rows.iter().map(|row| &row.host).min_by(|a, b| a.by_specificity(b)).cloned() else {
        return Vec::new();
    };
    rows.retain(|row| row.host == best);
    rows.sort_by(|a, b| a.created.cmp(&b.created).then_with(|| a.key.name.cmp(&b.key.name)));
    let mut candidates: Vec<Candidate> = Vec::with_capacity(rows.len());
    for row in rows {
        if let Some(rule) = mesh.destination_rule(&row.key) {
            let export_to = if at_home { ExportTo::All } else { rule.export_to.clone() };
            merge(&mut candidates, rule, export_to);
        }
    }
    candidates
}

/// Adds `rule` to the candidates that it is one with, or after them all.
///
/// A rule that is one with an early candidate but differs from the last is both merged and added: that is how Istio
/// goes through them, and the last candidate without a selector is the one that counts.
fn merge(candidates: &mut Vec<Candidate>, rule: &Arc<DestinationRule>, export_to: ExportTo) {
    let mut apart = true;
    for candidate in candidates.iter_mut() {
        let alike = candidate.selector == rule.workload_selector && candidate.export_to == export_to;
        if alike {
            candidate.parts.push(rule.clone());
        }
        apart = !alike;
    }
    if apart {
        candidates.push(Candidate {
            export_to,
            selector: rule.workload_selector.clone(),
            parts: vec![rule.clone()],
        });
    }
}

/// Returns the oldest candidate whose selector picks the client, else the newest without selector.
fn choose(client: Client<'_>, mut candidates: Vec<Candidate>) -> Option<Arc<MergedRule>> {
    let selected = client.selected.and_then(|selected| {
        candidates.iter().position(|candidate| {
            let key = &candidate.parts[0].meta.key;
            candidate.selector.is_some() && key.namespace == *client.namespace && selected.contains(key)
        })
    });
    let index = selected.or_else(|| candidates.iter().rposition(|candidate| candidate.selector.is_none()))?;
    Some(Arc::new(MergedRule { parts: candidates.swap_remove(index).parts }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{World, namespace, policy, rule, sidecar, subset};
    use model::destination_rule::{Algorithm, OutlierDetection};

    /// What happens to rules, written `namespace/name host export`, for a client in `app`.
    fn winner(rules: &[&str], service_namespace: &str) -> Option<String> {
        let mut world = World::new();
        for (age, text) in rules.iter().enumerate() {
            let mut words = text.split(' ');
            let (ns, name) = words.next().unwrap().split_once('/').unwrap();
            let mut rule = rule(ns, name, words.next().unwrap());
            rule.meta.created = age as i64;
            rule.export_to = match words.next().unwrap_or("*") {
                "*" => ExportTo::All,
                "~" => ExportTo::Nobody,
                list => ExportTo::Namespaces(list.split(',').map(Namespace::from).collect()),
            };
            world = world.rule(rule);
        }
        let mesh = Mesh::new(world.view());
        let found = lookup(&mesh, &sidecar(), &"a.org".into(), &namespace(service_namespace))?;
        Some(found.parts.iter().map(|part| part.meta.key.name.as_ref()).collect::<Vec<_>>().join("+"))
    }

    #[test]
    fn rules_are_found_in_order() {
        let cases: &[(&str, &[&str], Option<&str>)] = &[
            ("none", &[], None),
            ("other host", &["app/x b.org"], None),
            ("client before service", &["svc/s a.org", "app/c a.org"], Some("c")),
            (
                "a wildcard of the client before the service's host",
                &["svc/s a.org", "app/c *.org"],
                Some("c"),
            ),
            ("service before root", &["istio-system/r a.org", "svc/s *"], Some("s")),
            ("root last", &["istio-system/r *.org"], Some("r")),
            ("third namespaces do not count", &["other/o a.org"], None),
            ("specific before wildcard", &["app/w *.org", "app/s a.org", "app/all *"], Some("s")),
            ("private to the service", &["svc/s a.org svc"], None),
            ("private to the service, root instead", &["svc/s a.org svc", "istio-system/r a.org"], Some("r")),
            ("exported to the client", &["svc/s a.org app"], Some("s")),
            ("exported elsewhere hides less specific ones", &["svc/s a.org x,y", "svc/w *.org"], None),
            ("not applied at home", &["app/c a.org svc,x"], None),
            ("nobody", &["app/c a.org ~"], None),
            ("private root rules are for the root namespace", &["istio-system/r a.org istio-system"], None),
            ("alike are one", &["app/one a.org", "app/two a.org"], Some("one+two")),
            ("at home, exported unlike", &["app/one a.org", "app/two a.org app"], Some("one+two")),
            (
                "elsewhere, exported unlike: the newest",
                &["svc/one a.org", "svc/two a.org app,x"],
                Some("two"),
            ),
        ];
        for (case, rules, expected) in cases {
            assert_eq!(winner(rules, "svc").as_deref(), *expected, "{case}");
        }
    }

    #[test]
    fn in_the_root_namespace_its_own_public_rules_are_defaults() {
        let world = World::new()
            .rule(rule("istio-system", "default", "*.org"))
            .rule(rule("svc", "specific", "a.org"));
        let mesh = Mesh::new(world.view());
        let mut gateway = sidecar();
        gateway.namespace = "istio-system".into();
        let found = lookup(&mesh, &gateway, &"a.org".into(), &namespace("svc")).unwrap();
        assert_eq!(found.key().name.as_ref(), "specific");
    }

    #[test]
    fn a_rule_with_a_selector_is_for_the_clients_that_it_selects() {
        let selective = DestinationRule {
            workload_selector: Some([("app", "x")].into_iter().collect()),
            ..rule("app", "selective", "a.org")
        };
        let world = World::new()
            .rule(selective.clone())
            .rule(DestinationRule { subsets: vec![subset("v1", None)], ..rule("app", "general", "a.org") });
        let mesh = Mesh::new(world.view());
        let svc = namespace("svc");
        let found = lookup(&mesh, &sidecar(), &"a.org".into(), &svc).unwrap();
        assert_eq!(found.key().name.as_ref(), "general");

        let mut selected = sidecar();
        selected.selected_rules.insert(selective.meta.key.clone());
        let found = lookup(&mesh, &selected, &"a.org".into(), &svc).unwrap();
        assert!(found.has_workload_selector());
        assert_eq!(found.subsets().count(), 0, "the general rule is not merged into it");
        let found = lookup_inbound(&mesh, &svc, &"a.org".into(), &namespace("app")).unwrap();
        assert_eq!(found.key().name.as_ref(), "general");
    }

    #[test]
    fn merged_rules_unite_subsets_and_keep_the_oldest_policy() {
        let with = |algorithm| {
            let balancer = LoadBalancer { algorithm, ..LoadBalancer::default() };
            Some(policy(PortPolicy { load_balancer: Some(balancer), ..PortPolicy::default() }))
        };
        let merged = MergedRule {
            parts: vec![
                Arc::new(DestinationRule { subsets: vec![subset("v1", None)], ..rule("app", "a", "a.org") }),
                Arc::new(DestinationRule {
                    subsets: vec![subset("v1", with(Algorithm::Random)), subset("v2", None)],
                    policy: with(Algorithm::RoundRobin),
                    ..rule("app", "b", "a.org")
                }),
                Arc::new(DestinationRule { policy: with(Algorithm::Random), ..rule("app", "c", "a.org") }),
            ],
        };
        assert_eq!(merged.subsets().map(|subset| &*subset.name).collect::<Vec<_>>(), ["v1", "v2"]);
        assert_eq!(merged.subset("v1").unwrap().policy, None);
        assert_eq!(merged.policy(), with(Algorithm::RoundRobin).as_ref());
    }

    #[test]
    fn port_entries_replace_and_subsets_are_laid_over() {
        let outlier = |interval| OutlierDetection {
            interval: Some(std::time::Duration::from_secs(interval)),
            ..OutlierDetection::default()
        };
        let entry = |balancer: Option<Algorithm>, interval: Option<u64>| PortPolicy {
            load_balancer: balancer.map(|algorithm| LoadBalancer { algorithm, ..LoadBalancer::default() }),
            outlier_detection: interval.map(outlier),
            ..PortPolicy::default()
        };
        let merged = MergedRule {
            parts: vec![Arc::new(DestinationRule {
                policy: Some(TrafficPolicy {
                    port_level: vec![(81, entry(None, Some(81)))],
                    ..policy(entry(Some(Algorithm::Random), Some(1)))
                }),
                subsets: vec![
                    subset(
                        "v1",
                        Some(TrafficPolicy {
                            port_level: vec![(82, entry(None, Some(82)))],
                            ..policy(entry(Some(Algorithm::RoundRobin), None))
                        }),
                    ),
                    subset("v2", None),
                ],
                ..rule("app", "a", "a.org")
            })],
        };
        let cases = [
            (80, "", Some(Algorithm::Random), Some(1)),
            (81, "", None, Some(81)),
            (80, "v1", Some(Algorithm::RoundRobin), Some(1)),
            (81, "v1", Some(Algorithm::RoundRobin), Some(81)),
            (82, "v1", None, Some(82)),
            (81, "v2", None, Some(81)),
        ];
        for (port, name, balancer, interval) in cases {
            let blocks = merged.port_policy(port, name);
            let actual = (
                blocks.load_balancer.map(|balancer| balancer.algorithm.clone()),
                blocks.outlier_detection.and_then(|outlier| outlier.interval).map(|time| time.as_secs()),
            );
            assert_eq!(actual, (balancer, interval), "port {port}, subset {name:?}");
        }
    }
}
