//! The rules as a script for `nft --file -`: one transaction, before which the kernel has the rules of before, and after
//! which it has these.

use crate::plan::{Family, Plan, Tables};
use crate::rule::{Chain, Is, Owner, Rule, State, Table, Verdict};
use crate::settings::Interface;
use std::fmt::Write as _;

/// The name of our table, of which each family has one.
pub const TABLE: &str = "weft_capture";

/// Returns the script that replaces whatever rules we have by those of `plan`, for families that the kernel has.
pub fn script(plan: &Plan, families: &[Family]) -> String {
    let mut script = String::new();
    for family in families {
        let name = name(*family);
        // A table can be deleted only if there is one.
        let _ = writeln!(script, "add table {name} {TABLE}\ndelete table {name} {TABLE}");
        let tables = plan.family(*family);
        if !tables.is_empty() {
            let _ = writeln!(script, "table {name} {TABLE} {{");
            chains(&mut script, tables, name);
            script.push_str("}\n");
        }
    }
    script
}

fn name(family: Family) -> &'static str {
    match family {
        Family::V4 => "ip",
        Family::V6 => "ip6",
    }
}

fn chains(script: &mut String, tables: &Tables, family: &str) {
    for ((table, chain), rules) in tables {
        let _ = writeln!(script, "\tchain {} {{", chain_name(*table, *chain));
        if let Some(hook) = hook(*table, *chain) {
            let _ = writeln!(script, "\t\ttype {hook}; policy accept;");
        }
        for rule in rules {
            let _ = writeln!(script, "\t\t{}", text(rule, *table, family));
        }
        script.push_str("\t}\n");
    }
}

fn chain_name(table: Table, chain: Chain) -> String {
    format!("{}_{}", table.name(), chain.name().to_ascii_lowercase())
}

/// Returns type, hook and priority of a chain that packets enter from the kernel.
fn hook(table: Table, chain: Chain) -> Option<&'static str> {
    match (table, chain) {
        (Table::Raw, Chain::Prerouting) => Some("filter hook prerouting priority -300"),
        (Table::Raw, Chain::Output) => Some("filter hook output priority -300"),
        (Table::Mangle, Chain::Prerouting) => Some("filter hook prerouting priority -150"),
        // A mark that changes is looked up in routing tables again.
        (Table::Mangle, Chain::Output) => Some("route hook output priority -150"),
        (Table::Nat, Chain::Prerouting) => Some("nat hook prerouting priority -100"),
        (Table::Nat, Chain::Output) => Some("nat hook output priority -100"),
        _ => None,
    }
}

fn text(rule: &Rule, table: Table, family: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut word = |text: String| words.push(text);
    let interface = |interface: &Interface| {
        let rest = if interface.is_prefix() { "*" } else { "" };
        format!("\"{}{rest}\"", interface.name())
    };
    if let Some(name) = &rule.from_interface {
        word(format!("iifname {}", interface(name)));
    }
    if let Some(name) = &rule.to_interface {
        word(format!("oifname {}", interface(name)));
    }
    if let Some(range) = &rule.source {
        word(format!("{family} saddr {range}"));
    }
    if let Some(range) = &rule.destination {
        word(format!("{family} daddr {}", compare(range, ToString::to_string)));
    }
    if let Some(protocol) = rule.protocol {
        let name = protocol.name();
        if rule.source_port.is_none() && rule.ports.is_none() {
            word(format!("meta l4proto {name}"));
        }
        if let Some(port) = rule.source_port {
            word(format!("{name} sport {port}"));
        }
        if let Some(ports) = &rule.ports {
            word(format!("{name} dport {}", compare(ports, |ports| set(ports))));
        }
    }
    match rule.state {
        Some(State::Established) => word("ct state established,related".to_owned()),
        Some(State::Invalid) => word("ct state invalid".to_owned()),
        None => {}
    }
    if let Some(mark) = &rule.mark {
        word(format!("meta mark {}", compare(mark, ToString::to_string)));
    }
    if let Some(mark) = rule.connection_mark {
        word(format!("ct mark {mark}"));
    }
    match &rule.owner {
        Some(Owner::User(user)) => word(format!("meta skuid {}", compare(user, ToString::to_string))),
        Some(Owner::Group(group)) => word(format!("meta skgid {}", compare(group, ToString::to_string))),
        Some(Owner::NoneOf(groups)) if !groups.is_empty() => word(format!("meta skgid != {}", set(groups))),
        Some(Owner::NoneOf(_)) | None => {}
    }
    word(verdict(rule.verdict, table));
    words.join(" ")
}

fn compare<T>(value: &Is<T>, text: impl Fn(&T) -> String) -> String {
    match value {
        Is::Equal(value) => text(value),
        Is::Other(value) => format!("!= {}", text(value)),
    }
}

fn set<T: ToString>(values: &[T]) -> String {
    match values {
        [value] => value.to_string(),
        values => {
            let values: Vec<String> = values.iter().map(ToString::to_string).collect();
            format!("{{ {} }}", values.join(", "))
        }
    }
}

fn verdict(verdict: Verdict, table: Table) -> String {
    match verdict {
        Verdict::Return => "return".to_owned(),
        Verdict::Accept => "accept".to_owned(),
        Verdict::Drop => "drop".to_owned(),
        Verdict::Jump(chain) => format!("jump {}", chain_name(table, chain)),
        Verdict::Redirect(port) => format!("redirect to :{port}"),
        // Here, unlike in iptables, the rules after it would be asked.
        Verdict::Tproxy { port, mark } => format!("meta mark set {mark} tproxy to :{port} accept"),
        Verdict::SetMark(mark) => format!("meta mark set {mark}"),
        Verdict::SaveMark => "ct mark set meta mark".to_owned(),
        Verdict::RestoreMark => "meta mark set ct mark".to_owned(),
        Verdict::Zone(zone) => format!("ct zone set {zone}"),
    }
}
