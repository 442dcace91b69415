//! The rules for settings, in order.
//!
//! ```text
//! inbound   nat PREROUTING ─▶ ISTIO_INBOUND ─ not excluded ─▶ ISTIO_IN_REDIRECT ─▶ 15006        (REDIRECT)
//!           mangle PREROUTING ─▶ ISTIO_INBOUND ─ not excluded ─▶ ISTIO_TPROXY ─▶ 15006          (TPROXY)
//! outbound  nat OUTPUT ─▶ ISTIO_OUTPUT ─ not the proxy's, not local, not excluded ─▶ ISTIO_REDIRECT ─▶ 15001
//! names     nat OUTPUT ─▶ ISTIO_OUTPUT ─▶ ISTIO_OUTPUT_DNS ─▶ 15053
//! ```

use crate::rule::{Chain, Is, Owner, Rule, State, Table, Verdict};
use crate::settings::{Dns, InboundPorts, Interface, Mode, OutboundRanges, OwnerGroups, Settings};
use ipnet::IpNet;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The mark of what the proxy sends to its own workload, by its own address.
pub(crate) const TO_SELF_MARK: u32 = 1338;
/// Where the agent answers questions to name servers.
const DNS_PORT: u16 = 15053;
/// Where name servers do.
const DOMAIN: u16 = 53;
/// Connection tracking of what the agent asks name servers.
const UPSTREAM_ZONE: u16 = 1;
/// Connection tracking of what the application asks the agent.
const APPLICATION_ZONE: u16 = 2;

/// IPv4 or IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    fn has(self, address: &IpAddr) -> bool {
        address.is_ipv4() == (self == Self::V4)
    }
}

/// Rules by table and chain. A chain without rules is not there.
pub type Tables = BTreeMap<(Table, Chain), Vec<Rule>>;

/// What is needed besides rules.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Routing {
    /// Whether the loopback interface needs the address `::6`, from which Envoy connects to its application. Of
    /// 127.0.0.6 the like goes without saying.
    pub local_v6_address: bool,
    /// The mark of packets that are to be taken for local ones, and the routing table that says so.
    pub marked: Option<(u32, u32)>,
}

/// What the kernel is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Rules for IPv4.
    pub v4: Tables,
    /// Rules for IPv6; none without IPv6.
    pub v6: Tables,
    /// What is needed besides.
    pub routing: Routing,
}

impl Plan {
    /// Returns the rules for settings that have been [checked](Settings::check).
    pub fn new(settings: &Settings) -> Self {
        let marked = is_tproxy(settings).then_some((settings.tproxy.mark, settings.tproxy.table));
        Self {
            v4: tables(settings, Family::V4),
            v6: if settings.ipv6 { tables(settings, Family::V6) } else { Tables::new() },
            routing: Routing { local_v6_address: settings.ipv6, marked },
        }
    }

    /// Returns the plan that leaves nothing of any other.
    pub fn nothing() -> Self {
        Self { v4: Tables::new(), v6: Tables::new(), routing: Routing::default() }
    }

    /// Returns the rules of a family.
    pub fn family(&self, family: Family) -> &Tables {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }
}

fn captures_inbound(settings: &Settings) -> bool {
    settings.inbound != InboundPorts::Only(Vec::new())
}

fn is_tproxy(settings: &Settings) -> bool {
    settings.mode == Mode::Tproxy && captures_inbound(settings)
}

fn tables(settings: &Settings, family: Family) -> Tables {
    let builder = Builder { settings, family, tables: Tables::new() };
    builder.build()
}

struct Builder<'a> {
    settings: &'a Settings,
    family: Family,
    tables: Tables,
}

impl Builder<'_> {
    fn build(mut self) -> Tables {
        self.interfaces();
        if self.settings.drop_invalid {
            let invalid = Rule::new(Verdict::Jump(Chain::Drop)).state(State::Invalid);
            self.add(Table::Mangle, Chain::Prerouting, invalid);
            self.add(Table::Mangle, Chain::Drop, Rule::new(Verdict::Drop));
        }
        self.inbound();
        self.outbound();
        if is_tproxy(self.settings) {
            self.marks();
        }
        self.tables
    }

    fn add(&mut self, table: Table, chain: Chain, rule: Rule) {
        self.tables.entry((table, chain)).or_default().push(rule);
    }

    /// Addresses by which processes here speak to each other.
    fn loopback(&self) -> IpNet {
        match self.family {
            Family::V4 => self.settings.loopback.into(),
            Family::V6 => IpAddr::from(Ipv6Addr::LOCALHOST).into(),
        }
    }

    /// The address from which Envoy and the agent connect to the application.
    fn proxys_own(&self) -> IpNet {
        match self.family {
            Family::V4 => IpAddr::from(Ipv4Addr::new(127, 0, 0, 6)).into(),
            Family::V6 => IpAddr::from(Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6)).into(),
        }
    }

    /// Those of this family.
    fn of_family<'r>(&self, ranges: &'r [IpNet]) -> Vec<&'r IpNet> {
        ranges.iter().filter(|range| self.family.has(&range.addr())).collect()
    }

    fn interfaces(&mut self) {
        let settings = self.settings;
        let to_envoy = Rule::new(Verdict::Jump(Chain::Redirect));
        for interface in &settings.virtual_interfaces {
            match &settings.outbound {
                OutboundRanges::All => {
                    self.add(Table::Nat, Chain::Prerouting, to_envoy.clone().from(interface));
                }
                OutboundRanges::Only(ranges) => {
                    for range in self.of_family(ranges) {
                        let rule = to_envoy.clone().from(interface).destination(*range);
                        self.add(Table::Nat, Chain::Prerouting, rule);
                    }
                }
            }
        }
        // What a virtual machine sends is not for the workload.
        for interface in &settings.virtual_interfaces {
            self.add(Table::Nat, Chain::Prerouting, Rule::new(Verdict::Return).from(interface));
        }
        for interface in &settings.except_interfaces {
            for table in [Table::Nat, Table::Mangle] {
                if table == Table::Nat || is_tproxy(settings) {
                    self.add(table, Chain::Prerouting, Rule::new(Verdict::Return).from(interface));
                    self.add(table, Chain::Output, Rule::new(Verdict::Return).to(interface));
                }
            }
        }
    }

    fn inbound(&mut self) {
        let settings = self.settings;
        self.add(Table::Nat, Chain::InRedirect, Rule::tcp(Verdict::Redirect(settings.inbound_port)));
        if !captures_inbound(settings) {
            return;
        }
        let is_tproxy = settings.mode == Mode::Tproxy;
        let table = if is_tproxy { Table::Mangle } else { Table::Nat };
        self.add(table, Chain::Prerouting, Rule::tcp(Verdict::Jump(Chain::Inbound)));
        if is_tproxy {
            self.tproxy_chains();
        } else {
            self.add(table, Chain::Inbound, Rule::tcp(Verdict::Return).port(settings.tunnel_port));
        }
        match &settings.inbound {
            InboundPorts::AllBut(ports) => {
                for port in ports {
                    self.add(table, Chain::Inbound, Rule::tcp(Verdict::Return).port(*port));
                }
                self.hand_over(is_tproxy, &|rule| rule);
            }
            InboundPorts::Only(ports) => {
                for port in ports {
                    self.hand_over(is_tproxy, &|rule| rule.port(*port));
                }
            }
        }
    }

    /// Sends inbound traffic of one port, or of all, to Envoy.
    fn hand_over(&mut self, is_tproxy: bool, of_port: &dyn Fn(Rule) -> Rule) {
        let jump = |chain| of_port(Rule::tcp(Verdict::Jump(chain)));
        if is_tproxy {
            self.add(Table::Mangle, Chain::Inbound, jump(Chain::Divert).state(State::Established));
            self.add(Table::Mangle, Chain::Inbound, jump(Chain::Tproxy));
        } else {
            self.add(Table::Nat, Chain::Inbound, jump(Chain::InRedirect));
        }
    }

    fn tproxy_chains(&mut self) {
        let (mark, port) = (self.settings.tproxy.mark, self.settings.inbound_port);
        self.add(Table::Mangle, Chain::Divert, Rule::new(Verdict::SetMark(mark)));
        self.add(Table::Mangle, Chain::Divert, Rule::new(Verdict::Accept));
        let to_envoy = Rule::tcp(Verdict::Tproxy { port, mark }).not_to(self.loopback());
        self.add(Table::Mangle, Chain::Tproxy, to_envoy);
        let lo = &Interface::loopback();
        let rule = || Rule::tcp(Verdict::Return);
        for rule in [
            // Envoy sends with this mark what it has from a client: that is for the application.
            rule().mark(Is::Equal(mark)),
            rule().source(self.proxys_own()).from(lo),
            // Of what goes from the workload to itself, only the proxy's calls by the workload's address are inbound.
            rule().from(lo).mark(Is::Other(TO_SELF_MARK)),
        ] {
            self.add(Table::Mangle, Chain::Inbound, rule);
        }
    }

    fn outbound(&mut self) {
        let settings = self.settings;
        self.add(Table::Nat, Chain::Redirect, Rule::tcp(Verdict::Redirect(settings.outbound_port)));
        for port in &settings.outbound_ports_except {
            self.output(Rule::tcp(Verdict::Return).port(*port));
            self.output(Rule::udp(Verdict::Return).port(*port));
        }
        self.output(Rule::new(Verdict::Return).to(&Interface::loopback()).source(self.proxys_own()));
        self.of_proxy();
        match &settings.owner_groups {
            OwnerGroups::AllBut(groups) => {
                for group in groups {
                    self.output(Rule::new(Verdict::Return).owner(Owner::Group(Is::Equal(*group))));
                }
            }
            OwnerGroups::Only(groups) => {
                self.output(Rule::new(Verdict::Return).owner(Owner::NoneOf(groups.clone())));
            }
        }
        self.names();
        self.output(Rule::new(Verdict::Return).destination(self.loopback()));
        for range in self.of_family(&settings.outbound_except) {
            self.output(Rule::new(Verdict::Return).destination(*range));
        }
        for port in &settings.outbound_ports {
            self.output(Rule::tcp(Verdict::Jump(Chain::Redirect)).port(*port));
        }
        match &settings.outbound {
            OutboundRanges::All => self.output(Rule::new(Verdict::Jump(Chain::Redirect))),
            OutboundRanges::Only(ranges) => {
                for range in self.of_family(ranges) {
                    self.output(Rule::new(Verdict::Jump(Chain::Redirect)).destination(*range));
                }
            }
        }
    }

    fn output(&mut self, rule: Rule) {
        self.add(Table::Nat, Chain::Output, rule);
    }

    /// What the proxy sends is never outbound; by the workload's own address it is inbound.
    fn of_proxy(&mut self) {
        let settings = self.settings;
        let captures_names = settings.dns != Dns::Off;
        let lo = &Interface::loopback();
        let captures_loopback = matches!(
            &settings.outbound,
            OutboundRanges::Only(ranges) if ranges.iter().any(|range| range.addr().is_loopback())
        );
        let users = settings.users.iter().map(|user| (Owner::User as fn(_) -> _, *user));
        let groups = settings.groups.iter().map(|group| (Owner::Group as fn(_) -> _, *group));
        for (owner, id) in users.chain(groups) {
            let mut untouched = vec![settings.tunnel_port];
            if captures_names {
                // The agent asks a name server here, not one behind Envoy.
                untouched.insert(0, DOMAIN);
            }
            self.output(
                Rule::tcp(Verdict::Jump(Chain::InRedirect))
                    .to(lo)
                    .not_to(self.loopback())
                    .no_port_of(&untouched)
                    .owner(owner(Is::Equal(id))),
            );
            // What the application sends to itself stays inside, unless that is asked for.
            if !captures_loopback {
                let rule = if captures_names {
                    Rule::tcp(Verdict::Return).no_port_of(&[DOMAIN])
                } else {
                    Rule::new(Verdict::Return)
                };
                self.output(rule.to(lo).owner(owner(Is::Other(id))));
            }
            self.output(Rule::new(Verdict::Return).owner(owner(Is::Equal(id))));
        }
    }

    fn names(&mut self) {
        let settings = self.settings;
        // `None` stands for every server.
        let servers: Vec<Option<IpNet>> = match &settings.dns {
            Dns::Off => return,
            Dns::All => vec![None],
            Dns::Servers(servers) => servers
                .iter()
                .filter(|server| self.family.has(server))
                .map(|server| Some((*server).into()))
                .collect(),
        };
        if servers.is_empty() {
            return;
        }
        self.output(Rule::new(Verdict::Jump(Chain::Dns)));
        let to = |rule: Rule, server: Option<IpNet>| match server {
            Some(server) => rule.destination(server),
            None => rule,
        };
        for new in [Rule::tcp, Rule::udp] {
            for server in &servers {
                let rule = to(new(Verdict::Redirect(DNS_PORT)).port(DOMAIN), *server);
                self.add(Table::Nat, Chain::Dns, rule);
            }
        }
        self.zones(&servers, &to);
    }

    /// Tracks what the agent asks, and what it is asked, apart: both have the same addresses and ports at times.
    fn zones(&mut self, servers: &[Option<IpNet>], to: &dyn Fn(Rule, Option<IpNet>) -> Rule) {
        let settings = self.settings;
        self.add(Table::Raw, Chain::Output, Rule::new(Verdict::Jump(Chain::Dns)));
        let users = settings.users.iter().map(|user| Owner::User(Is::Equal(*user)));
        let groups = settings.groups.iter().map(|group| Owner::Group(Is::Equal(*group)));
        for owner in users.chain(groups) {
            let asks = Rule::udp(Verdict::Zone(UPSTREAM_ZONE)).port(DOMAIN).owner(owner.clone());
            self.add(Table::Raw, Chain::Dns, asks);
            let answers = Rule::udp(Verdict::Zone(APPLICATION_ZONE)).source_port(DNS_PORT).owner(owner);
            self.add(Table::Raw, Chain::Dns, answers);
        }
        self.add(Table::Raw, Chain::Prerouting, Rule::new(Verdict::Jump(Chain::Inbound)));
        for server in servers {
            let asks = to(Rule::udp(Verdict::Zone(APPLICATION_ZONE)).port(DOMAIN), *server);
            self.add(Table::Raw, Chain::Dns, asks);
            let answers = Rule::udp(Verdict::Zone(UPSTREAM_ZONE)).source_port(DOMAIN);
            let answers = match server {
                Some(server) => answers.source(*server),
                None => answers,
            };
            self.add(Table::Raw, Chain::Inbound, answers);
        }
    }

    /// Keeps the marks by which packets of TPROXY's connections find their way back to Envoy.
    fn marks(&mut self) {
        let settings = self.settings;
        let mark = settings.tproxy.mark;
        let lo = &Interface::loopback();
        self.add(Table::Mangle, Chain::Prerouting, Rule::tcp(Verdict::SaveMark).mark(Is::Equal(mark)));
        self.add(Table::Mangle, Chain::Output, Rule::tcp(Verdict::Return).to(lo).mark(Is::Equal(mark)));
        let users = settings.users.iter().map(|user| Owner::User(Is::Equal(*user)));
        let groups = settings.groups.iter().map(|group| Owner::Group(Is::Equal(*group)));
        for owner in users.chain(groups) {
            let rule = Rule::tcp(Verdict::SetMark(TO_SELF_MARK)).to(lo).not_to(self.loopback()).owner(owner);
            self.add(Table::Mangle, Chain::Output, rule);
        }
        self.add(Table::Mangle, Chain::Output, Rule::tcp(Verdict::RestoreMark).connection_mark(mark));
    }
}
