//! The rules as input of `iptables-restore --noflush` and `ip6tables-restore --noflush`: a transaction for each table.
//!
//! Nothing of others is touched: the kernel's own chains get one jump each, and everything else is in chains of ours. So
//! what is there has to be known, from `iptables-save`.

use crate::plan::Tables;
use crate::rule::{Chain, Hook, Is, Owner, Rule, State, Table, Verdict};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What of ours, or of Istio's, the kernel has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Existing {
    chains: BTreeSet<(Table, Chain)>,
    /// Rules of others' chains that lead into ours, without what appends them.
    jumps: BTreeMap<Table, Vec<String>>,
}

impl Existing {
    /// Finds it in what `iptables-save` prints.
    pub fn parse(saved: &str) -> Self {
        let mut existing = Self::default();
        let mut table = None;
        for line in saved.lines() {
            if let Some(name) = line.strip_prefix('*') {
                table = Table::ALL.into_iter().find(|table| table.name() == name.trim());
            }
            let Some(table) = table else { continue };
            if let Some(rest) = line.strip_prefix(':') {
                existing.chains.extend(chain(rest.split_whitespace().next()).map(|chain| (table, chain)));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                let words: Vec<&str> = rule.split_whitespace().collect();
                let target = words.windows(2).find(|pair| matches!(pair[0], "-j" | "-g")).map(|pair| pair[1]);
                if chain(words.first().copied()).is_none() && chain(target).is_some() {
                    existing.jumps.entry(table).or_default().push(rule.trim().to_owned());
                }
            }
        }
        existing
    }

    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.chains.is_empty() && self.jumps.is_empty()
    }
}

fn chain(name: Option<&str>) -> Option<Chain> {
    Chain::ALL.into_iter().find(|chain| Some(chain.name()) == name)
}

/// Returns the input that makes of `existing` what `tables` says; nothing, if nothing is there and nothing is wanted.
pub fn script(tables: &Tables, existing: &Existing) -> String {
    let mut script = String::new();
    for table in Table::ALL {
        let wanted: Vec<Chain> =
            tables.keys().filter(|(of, _)| *of == table).map(|(_, chain)| *chain).collect();
        let stale: Vec<Chain> = existing
            .chains
            .iter()
            .filter(|(of, chain)| *of == table && !wanted.contains(chain))
            .map(|(_, chain)| *chain)
            .collect();
        let jumps = existing.jumps.get(&table).map(Vec::as_slice).unwrap_or_default();
        if wanted.is_empty() && stale.is_empty() && jumps.is_empty() {
            continue;
        }
        let _ = writeln!(script, "*{}", table.name());
        // A chain that is declared is made, or emptied.
        for chain in wanted.iter().chain(&stale) {
            let _ = writeln!(script, ":{} - [0:0]", chain.name());
        }
        hooks(&mut script, &wanted, jumps);
        for chain in &wanted {
            for rule in tables.get(&(table, *chain)).into_iter().flatten() {
                let _ = writeln!(script, "-A {} {}", chain.name(), text(rule));
            }
        }
        for chain in stale {
            let _ = writeln!(script, "-X {}", chain.name());
        }
        script.push_str("COMMIT\n");
    }
    script
}

/// Leads packets into our chains, once each. A jump that is there already stays where it is.
fn hooks(script: &mut String, wanted: &[Chain], jumps: &[String]) {
    let mut needed: Vec<String> = Vec::new();
    for chain in wanted {
        if let Some(hook) = chain.hook() {
            needed.push(format!("{} -j {}", builtin(hook), chain.name()));
        }
    }
    for jump in jumps {
        match needed.iter().position(|line| line == jump) {
            Some(at) => drop(needed.remove(at)),
            None => {
                let _ = writeln!(script, "-D {jump}");
            }
        }
    }
    for line in needed {
        let _ = writeln!(script, "-A {line}");
    }
}

fn builtin(hook: Hook) -> &'static str {
    match hook {
        Hook::Prerouting => "PREROUTING",
        Hook::Output => "OUTPUT",
    }
}

fn text(rule: &Rule) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut word = |text: String| words.push(text);
    if let Some(interface) = &rule.from_interface {
        word(format!("-i {interface}"));
    }
    if let Some(interface) = &rule.to_interface {
        word(format!("-o {interface}"));
    }
    if let Some(range) = &rule.source {
        word(format!("-s {range}"));
    }
    if let Some(range) = &rule.destination {
        word(compare(range, |range| format!("-d {range}")));
    }
    if let Some(protocol) = rule.protocol {
        word(format!("-p {}", protocol.name()));
    }
    if let Some(port) = rule.source_port {
        word(format!("--sport {port}"));
    }
    if let Some(ports) = &rule.ports {
        let several = matches!(ports, Is::Equal(ports) | Is::Other(ports) if ports.len() != 1);
        if several {
            word("-m multiport".to_owned());
        }
        let option = if several { "--dports" } else { "--dport" };
        word(compare(ports, |ports| format!("{option} {}", join(ports))));
    }
    match rule.state {
        Some(State::Established) => word("-m conntrack --ctstate RELATED,ESTABLISHED".to_owned()),
        Some(State::Invalid) => word("-m conntrack --ctstate INVALID".to_owned()),
        None => {}
    }
    if let Some(mark) = &rule.mark {
        word(format!("-m mark {}", compare(mark, |mark| format!("--mark {mark}"))));
    }
    if let Some(mark) = rule.connection_mark {
        word(format!("-m connmark --mark {mark}"));
    }
    match &rule.owner {
        Some(Owner::User(user)) => {
            word(format!("-m owner {}", compare(user, |user| format!("--uid-owner {user}"))));
        }
        Some(Owner::Group(group)) => {
            word(format!("-m owner {}", compare(group, |group| format!("--gid-owner {group}"))));
        }
        Some(Owner::NoneOf(groups)) => {
            groups.iter().for_each(|group| word(format!("-m owner ! --gid-owner {group}")));
        }
        None => {}
    }
    word(verdict(rule.verdict));
    words.join(" ")
}

fn compare<T>(value: &Is<T>, text: impl Fn(&T) -> String) -> String {
    match value {
        Is::Equal(value) => text(value),
        Is::Other(value) => format!("! {}", text(value)),
    }
}

fn join(ports: &[u16]) -> String {
    ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",")
}

fn verdict(verdict: Verdict) -> String {
    match verdict {
        Verdict::Return => "-j RETURN".to_owned(),
        Verdict::Accept => "-j ACCEPT".to_owned(),
        Verdict::Drop => "-j DROP".to_owned(),
        Verdict::Jump(chain) => format!("-j {}", chain.name()),
        Verdict::Redirect(port) => format!("-j REDIRECT --to-ports {port}"),
        Verdict::Tproxy { port, mark } => {
            format!("-j TPROXY --on-port {port} --tproxy-mark {mark}/0xffffffff")
        }
        Verdict::SetMark(mark) => format!("-j MARK --set-xmark {mark}/0xffffffff"),
        Verdict::SaveMark => "-j CONNMARK --save-mark".to_owned(),
        Verdict::RestoreMark => "-j CONNMARK --restore-mark".to_owned(),
        Verdict::Zone(zone) => format!("-j CT --zone {zone}"),
    }
}
