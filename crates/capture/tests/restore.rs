//! What `iptables-restore` makes of our scripts, by a model of it: nothing of others changes, a second run changes
//! nothing, and taking everything away leaves what was there before.

use capture::iptables::{Existing, script};
use capture::{Family, InboundPorts, Mode, OutboundRanges, Plan, Settings};
use proptest::prelude::*;
use std::collections::BTreeMap;

/// Chains and their rules, by table.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Kernel(BTreeMap<&'static str, BTreeMap<String, Vec<String>>>);

const BUILTIN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl Kernel {
    fn new() -> Self {
        let empty = || BUILTIN.iter().map(|chain| ((*chain).to_owned(), Vec::new())).collect();
        Self(["raw", "mangle", "nat"].into_iter().map(|table| (table, empty())).collect())
    }

    fn save(&self) -> String {
        let mut text = "# Generated\n".to_owned();
        for (table, chains) in &self.0 {
            text.push_str(&format!("*{table}\n"));
            for chain in chains.keys() {
                let policy = if BUILTIN.contains(&chain.as_str()) { "ACCEPT" } else { "-" };
                text.push_str(&format!(":{chain} {policy} [12:3456]\n"));
            }
            for (chain, rules) in chains {
                rules.iter().for_each(|rule| text.push_str(&format!("-A {chain} {rule}\n")));
            }
            text.push_str("COMMIT\n");
        }
        text
    }

    /// As `iptables-restore --noflush`.
    fn restore(&mut self, script: &str) {
        let mut table: Option<&mut BTreeMap<String, Vec<String>>> = None;
        for line in script.lines() {
            let (option, rest) = line.split_once(' ').unwrap_or((line, ""));
            if let Some(name) = line.strip_prefix('*') {
                assert!(table.is_none(), "a table begins before the one before it ends");
                table = Some(self.0.get_mut(name).unwrap());
                continue;
            }
            let chains = table.as_deref_mut().unwrap();
            let (name, rule) = rest.split_once(' ').unwrap_or((rest, ""));
            if let Some(chain) = option.strip_prefix(':') {
                assert!(!BUILTIN.contains(&chain), "{line}");
                chains.insert(chain.to_owned(), Vec::new());
            } else if option == "-A" {
                let target = rule.split("-j ").nth(1).unwrap().split(' ').next().unwrap();
                assert!(
                    !target.starts_with("ISTIO_") || chains.contains_key(target),
                    "{line}: no such chain"
                );
                chains.get_mut(name).unwrap_or_else(|| panic!("{line}: no such chain")).push(rule.to_owned());
            } else if option == "-D" {
                let rules = chains.get_mut(name).unwrap();
                let at = rules
                    .iter()
                    .position(|other| other == rule)
                    .unwrap_or_else(|| panic!("{line}: not there"));
                rules.remove(at);
            } else if option == "-X" {
                let used = chains.values().flatten().any(|rule| rule.ends_with(&format!("-j {rest}")));
                assert!(!used && chains[rest].is_empty(), "{line}: in use");
                chains.remove(rest);
            } else if option == "COMMIT" {
                table = None;
            } else {
                panic!("{line}");
            }
        }
        assert!(table.is_none());
    }

    fn apply(&mut self, settings: Option<&Settings>) -> String {
        let plan = settings.map_or_else(Plan::nothing, Plan::new);
        let input = script(plan.family(Family::V4), &Existing::parse(&self.save()));
        self.restore(&input);
        input
    }
}

fn others() -> impl Strategy<Value = Kernel> {
    let rule = prop_oneof![
        Just("-j DOCKER"),
        Just("-i eth1 -j RETURN"),
        Just("-p tcp -m comment --comment \"-j ISTIO_NOT\" -j ACCEPT"),
        Just("-s 10.0.0.0/8 -j MASQUERADE"),
    ];
    let place = (prop_oneof![Just("nat"), Just("mangle"), Just("raw")], prop::sample::select(&BUILTIN));
    prop::collection::vec((place, rule), 0..8).prop_map(|rules| {
        let mut kernel = Kernel::new();
        for ((table, chain), rule) in rules {
            kernel.0.get_mut(table).unwrap().get_mut(chain).unwrap().push(rule.to_owned());
        }
        kernel
    })
}

fn settings() -> impl Strategy<Value = Settings> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>()).prop_map(
        |(tproxy, inbound, all, invalid)| Settings {
            mode: if tproxy { Mode::Tproxy } else { Mode::Redirect },
            inbound: if inbound { InboundPorts::AllBut(vec![15021]) } else { InboundPorts::Only(Vec::new()) },
            outbound: if all { OutboundRanges::All } else { OutboundRanges::Only(Vec::new()) },
            drop_invalid: invalid,
            ..Settings::default()
        },
    )
}

proptest! {
    #[test]
    fn a_second_run_changes_nothing_and_cleaning_leaves_what_was_there(
        others in others(), one in settings(), other in settings(),
    ) {
        let mut kernel = others.clone();
        kernel.apply(Some(&one));
        let once = kernel.clone();
        kernel.apply(Some(&one));
        prop_assert_eq!(&kernel, &once, "a second run");

        kernel.apply(Some(&other));
        let mut fresh = others.clone();
        fresh.apply(Some(&other));
        let chains = |kernel: &Kernel| -> Vec<(String, Vec<String>)> {
            let all = kernel.0.iter().flat_map(|(table, chains)| {
                chains.iter().map(move |(chain, rules)| (format!("{table} {chain}"), rules.clone()))
            });
            all.collect()
        };
        prop_assert_eq!(chains(&kernel), chains(&fresh), "nothing of an earlier run is left");

        kernel.apply(None);
        prop_assert_eq!(&kernel, &others, "everything is as before");
        prop_assert_eq!(kernel.apply(None), "", "and there is nothing to do");
    }
}

/// A machine that had Istio's agent before.
#[test]
fn istios_own_rules_are_taken_over() {
    let mut kernel = Kernel::new();
    kernel.restore(
        "*nat\n:ISTIO_INBOUND - [0:0]\n:ISTIO_IN_REDIRECT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n:ISTIO_REDIRECT - [0:0]\n\
         -A PREROUTING -p tcp -j ISTIO_INBOUND\n-A OUTPUT -j ISTIO_OUTPUT\n-A OUTPUT -p tcp -j ISTIO_OUTPUT\n\
         -A ISTIO_INBOUND -p tcp -j ISTIO_IN_REDIRECT\nCOMMIT\n",
    );
    let mut fresh = Kernel::new();
    let settings = Settings {
        inbound: InboundPorts::AllBut(Vec::new()),
        outbound: OutboundRanges::All,
        ..Settings::default()
    };
    fresh.apply(Some(&settings));
    kernel.apply(Some(&settings));
    assert_eq!(kernel, fresh);
}
