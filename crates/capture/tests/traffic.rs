//! What the rules do with packets, by a model of how the kernel asks them.

use capture::{
    Chain, Dns, Hook, InboundPorts, Is, Mode, OutboundRanges, Owner, OwnerGroups, Plan, Protocol, Rule,
    Settings, State, Table, Tables, Verdict,
};
use ipnet::IpNet;
use proptest::prelude::*;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const PROXY: u32 = 1337;
const APPLICATION: u32 = 1000;

/// The first packet of a connection.
#[derive(Clone, Debug)]
struct Packet {
    from_interface: Option<&'static str>,
    to_interface: Option<&'static str>,
    source: IpAddr,
    destination: IpAddr,
    protocol: Protocol,
    port: u16,
    user: u32,
    group: u32,
    mark: u32,
}

impl Packet {
    fn outgoing(user: u32, destination: &str, port: u16) -> Self {
        let destination: IpAddr = destination.parse().unwrap();
        let local = destination.is_loopback() || destination == own(destination);
        Self {
            from_interface: None,
            to_interface: Some(if local { "lo" } else { "eth0" }),
            source: if destination.is_loopback() { destination } else { own(destination) },
            destination,
            protocol: Protocol::Tcp,
            port,
            user,
            group: user,
            mark: 0,
        }
    }

    fn incoming(port: u16) -> Self {
        let client = Ipv4Addr::new(10, 244, 0, 9).into();
        Self {
            from_interface: Some("eth0"),
            to_interface: None,
            source: client,
            destination: own(client),
            protocol: Protocol::Tcp,
            port,
            user: 0,
            group: 0,
            mark: 0,
        }
    }
}

/// The workload's address of the family of another.
fn own(other: IpAddr) -> IpAddr {
    match other {
        IpAddr::V4(_) => Ipv4Addr::new(10, 244, 0, 7).into(),
        IpAddr::V6(_) => Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 7).into(),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Untouched,
    Redirected(u16),
    Handed(u16),
    Dropped,
}

fn is<T: Copy>(value: &Is<T>, equals: impl Fn(T) -> bool) -> bool {
    match value {
        Is::Equal(value) => equals(*value),
        Is::Other(value) => !equals(*value),
    }
}

fn fits(rule: &Rule, packet: &Packet) -> bool {
    let all = |fit: Option<bool>| fit.unwrap_or(true);
    all(rule.protocol.map(|protocol| protocol == packet.protocol))
        && all(rule.from_interface.as_ref().map(|wanted| packet.from_interface.is_some_and(|name| wanted.is(name))))
        && all(rule.to_interface.as_ref().map(|wanted| packet.to_interface.is_some_and(|name| wanted.is(name))))
        && all(rule.source.map(|range| range.contains(&packet.source)))
        && all(rule.destination.map(|range| is(&range, |range| range.contains(&packet.destination))))
        // Of no packet here is the port that it comes from a well-known one.
        && rule.source_port.is_none()
        && all(rule.ports.as_ref().map(|ports| match ports {
            Is::Equal(ports) => ports.contains(&packet.port),
            Is::Other(ports) => !ports.contains(&packet.port),
        }))
        // It is the first of its connection.
        && !matches!(rule.state, Some(State::Established | State::Invalid))
        && all(rule.mark.map(|mark| is(&mark, |mark| mark == packet.mark)))
        && rule.connection_mark.is_none()
        && all(rule.owner.as_ref().map(|owner| match owner {
            Owner::User(user) => is(user, |user| user == packet.user),
            Owner::Group(group) => is(group, |group| group == packet.group),
            Owner::NoneOf(groups) => !groups.contains(&packet.group),
        }))
}

/// Asks a chain. `None`: the chain has no opinion.
fn ask(tables: &Tables, table: Table, chain: Chain, packet: &mut Packet) -> Option<Fate> {
    for rule in tables.get(&(table, chain))? {
        if !fits(rule, packet) {
            continue;
        }
        match rule.verdict {
            Verdict::Return => return None,
            Verdict::Accept => return Some(Fate::Untouched),
            Verdict::Drop => return Some(Fate::Dropped),
            Verdict::Jump(next) => {
                if let Some(fate) = ask(tables, table, next, packet) {
                    return Some(fate);
                }
            }
            Verdict::Redirect(port) => return Some(Fate::Redirected(port)),
            Verdict::Tproxy { port, .. } => return Some(Fate::Handed(port)),
            Verdict::SetMark(mark) => packet.mark = mark,
            Verdict::SaveMark | Verdict::RestoreMark | Verdict::Zone(_) => {}
        }
    }
    None
}

fn fate(settings: &Settings, packet: &Packet) -> Fate {
    let plan = Plan::new(settings);
    let tables = if packet.destination.is_ipv4() { &plan.v4 } else { &plan.v6 };
    let chain = if packet.from_interface.is_some() { Chain::Prerouting } else { Chain::Output };
    let mut packet = packet.clone();
    for table in Table::ALL {
        match ask(tables, table, chain, &mut packet) {
            Some(Fate::Untouched) | None => {}
            Some(fate) => return fate,
        }
    }
    Fate::Untouched
}

/// As the injector asks for it.
fn sidecar() -> Settings {
    Settings {
        inbound: InboundPorts::AllBut(vec![15090, 15021, 15020]),
        outbound: OutboundRanges::All,
        ipv6: true,
        ..Settings::default()
    }
}

#[test]
fn a_sidecar_gets_what_its_application_sends_and_is_sent() {
    let settings = sidecar();
    for destination in ["192.0.2.1", "10.96.0.10", "2001:db8::1"] {
        let packet = Packet::outgoing(APPLICATION, destination, 80);
        assert_eq!(fate(&settings, &packet), Fate::Redirected(15001), "{destination}");
        let packet = Packet::outgoing(PROXY, destination, 80);
        assert_eq!(fate(&settings, &packet), Fate::Untouched, "{destination}");
    }
    assert_eq!(fate(&settings, &Packet::incoming(8080)), Fate::Redirected(15006));
    for port in [15090, 15021, 15020, 15008] {
        assert_eq!(fate(&settings, &Packet::incoming(port)), Fate::Untouched, "{port}");
    }
}

/// The cases that are easy to get wrong: what a workload sends to itself.
#[test]
fn calls_to_itself_go_where_istio_sends_them() {
    let settings = sidecar();
    let to = |user, destination: &str| fate(&settings, &Packet::outgoing(user, destination, 8080));
    // The application asks itself, by localhost or by its address: nothing is between.
    assert_eq!(to(APPLICATION, "127.0.0.1"), Fate::Untouched);
    assert_eq!(to(APPLICATION, "10.244.0.7"), Fate::Untouched);
    // Envoy has chosen its own workload for a call to a service: that is inbound.
    assert_eq!(to(PROXY, "10.244.0.7"), Fate::Redirected(15006));
    assert_eq!(to(PROXY, "127.0.0.1"), Fate::Untouched);
    assert_eq!(to(PROXY, "fd00::7"), Fate::Redirected(15006));
    // Envoy's inbound half, and the agent's probes, reach the application.
    let mut passed = Packet::outgoing(PROXY, "10.244.0.7", 8080);
    passed.source = Ipv4Addr::new(127, 0, 0, 6).into();
    assert_eq!(fate(&settings, &passed), Fate::Untouched);
    // A tunnel to itself is no plain inbound connection.
    assert_eq!(fate(&settings, &Packet::outgoing(PROXY, "10.244.0.7", 15008)), Fate::Untouched);
}

#[test]
fn tproxy_hands_over_what_comes_in_and_nothing_of_the_applications_own() {
    let settings = Settings { mode: Mode::Tproxy, ..sidecar() };
    assert_eq!(fate(&settings, &Packet::incoming(8080)), Fate::Handed(15006));
    assert_eq!(fate(&settings, &Packet::incoming(15021)), Fate::Untouched);
    assert_eq!(fate(&settings, &Packet::outgoing(APPLICATION, "192.0.2.1", 80)), Fate::Redirected(15001));
    let over_loopback = Packet { from_interface: Some("lo"), ..Packet::incoming(8080) };
    assert_eq!(fate(&settings, &over_loopback), Fate::Untouched);
    // With Envoy's own mark it is a call by way of the workload's own address.
    assert_eq!(fate(&settings, &Packet { mark: 1338, ..over_loopback.clone() }), Fate::Handed(15006));
    // What Envoy sends in its client's name is for the application.
    assert_eq!(fate(&settings, &Packet { mark: 1337, ..over_loopback }), Fate::Untouched);
    assert_eq!(Plan::new(&settings).routing.marked, Some((1337, 133)));
    // Without anything to hand over, nothing is needed for it.
    let outbound_only = Settings { inbound: InboundPorts::Only(Vec::new()), ..settings };
    assert_eq!(Plan::new(&outbound_only).routing.marked, None);
}

#[test]
fn virtual_machines_inside_of_a_pod_are_applications() {
    let settings = Settings { virtual_interfaces: vec!["vm0".parse().unwrap()], ..sidecar() };
    let from_vm = Packet { from_interface: Some("vm0"), ..Packet::incoming(8080) };
    assert_eq!(fate(&settings, &from_vm), Fate::Redirected(15001));
    assert_eq!(fate(&settings, &Packet::incoming(8080)), Fate::Redirected(15006));
    let some = OutboundRanges::Only(vec!["10.96.0.0/12".parse().unwrap()]);
    let settings = Settings { outbound: some, ..settings };
    assert_eq!(fate(&settings, &from_vm), Fate::Untouched);
}

#[test]
fn excluded_interfaces_are_left_alone() {
    for mode in [Mode::Redirect, Mode::Tproxy] {
        let settings = Settings { except_interfaces: vec!["net+".parse().unwrap()], mode, ..sidecar() };
        let incoming = Packet { from_interface: Some("net1"), ..Packet::incoming(8080) };
        assert_eq!(fate(&settings, &incoming), Fate::Untouched, "{mode:?}");
        let outgoing =
            Packet { to_interface: Some("net1"), ..Packet::outgoing(APPLICATION, "192.0.2.1", 80) };
        assert_eq!(fate(&settings, &outgoing), Fate::Untouched, "{mode:?}");
    }
}

#[test]
fn groups_choose_who_is_captured() {
    let with = |owner_groups, group| {
        let settings = Settings { owner_groups, ..sidecar() };
        fate(&settings, &Packet { group, ..Packet::outgoing(APPLICATION, "192.0.2.1", 80) })
    };
    assert_eq!(with(OwnerGroups::Only(vec![5, 6]), 6), Fate::Redirected(15001));
    assert_eq!(with(OwnerGroups::Only(vec![5, 6]), 7), Fate::Untouched);
    assert_eq!(with(OwnerGroups::AllBut(vec![5]), 5), Fate::Untouched);
    assert_eq!(with(OwnerGroups::AllBut(vec![5]), 6), Fate::Redirected(15001));
}

#[test]
fn questions_to_name_servers_go_to_the_agent_but_not_its_own() {
    let server: IpAddr = Ipv4Addr::new(10, 96, 0, 10).into();
    let ask = |dns: Dns, user, destination: &str, protocol| {
        let settings = Settings { dns, ..sidecar() };
        fate(&settings, &Packet { protocol, ..Packet::outgoing(user, destination, 53) })
    };
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        let servers = || Dns::Servers(vec![server, Ipv4Addr::new(127, 0, 0, 53).into()]);
        assert_eq!(ask(servers(), APPLICATION, "10.96.0.10", protocol), Fate::Redirected(15053));
        assert_eq!(ask(servers(), APPLICATION, "127.0.0.53", protocol), Fate::Redirected(15053));
        assert_eq!(ask(servers(), PROXY, "10.96.0.10", protocol), Fate::Untouched);
        assert_eq!(ask(Dns::All, APPLICATION, "192.0.2.53", protocol), Fate::Redirected(15053));
    }
    let elsewhere = ask(Dns::Servers(vec![server]), APPLICATION, "192.0.2.53", Protocol::Udp);
    assert_eq!(elsewhere, Fate::Untouched);
}

fn range() -> impl Strategy<Value = IpNet> {
    let v4 = (any::<u32>(), 0..=32_u8)
        .prop_map(|(bits, length)| IpNet::new(Ipv4Addr::from_bits(bits).into(), length).unwrap().trunc());
    let v6 = (any::<u128>(), 0..=128_u8)
        .prop_map(|(bits, length)| IpNet::new(Ipv6Addr::from_bits(bits).into(), length).unwrap().trunc());
    prop_oneof![v4, v6]
}

prop_compose! {
    fn settings()(
        tproxy in any::<bool>(),
        all_in in any::<bool>(),
        inbound in prop::collection::vec(1..20_u16, 0..4),
        outbound in prop::option::of(prop::collection::vec(range(), 0..4)),
        outbound_except in prop::collection::vec(range(), 0..4),
        outbound_ports in prop::collection::vec(1..20_u16, 0..3),
        outbound_ports_except in prop::collection::vec(1..20_u16, 0..3),
        groups in prop::collection::vec(0..5_u32, 0..3),
        only_groups in any::<bool>(),
        virtual_interface in any::<bool>(),
        except_interface in any::<bool>(),
        dns in 0..3,
        drop_invalid in any::<bool>(),
    ) -> Settings {
        let interface = |on: bool, name: &str| on.then(|| name.parse().unwrap()).into_iter().collect();
        Settings {
            mode: if tproxy { Mode::Tproxy } else { Mode::Redirect },
            inbound: if all_in { InboundPorts::AllBut(inbound) } else { InboundPorts::Only(inbound) },
            outbound: outbound.map_or(OutboundRanges::All, OutboundRanges::Only),
            outbound_except,
            outbound_ports,
            outbound_ports_except,
            owner_groups: if only_groups { OwnerGroups::Only(groups) } else { OwnerGroups::AllBut(groups) },
            virtual_interfaces: interface(virtual_interface, "vm+"),
            except_interfaces: interface(except_interface, "net1"),
            dns: match dns {
                0 => Dns::Off,
                1 => Dns::All,
                _ => Dns::Servers(vec![Ipv4Addr::new(10, 96, 0, 10).into(), Ipv6Addr::LOCALHOST.into()]),
            },
            drop_invalid,
            ipv6: true,
            ..Settings::default()
        }
    }
}

fn destination() -> impl Strategy<Value = IpAddr> {
    prop_oneof![
        any::<u32>().prop_map(|bits| Ipv4Addr::from_bits(bits).into()),
        any::<u128>().prop_map(|bits| Ipv6Addr::from_bits(bits).into()),
        Just(IpAddr::from(Ipv4Addr::LOCALHOST)),
        Just(IpAddr::from(Ipv4Addr::new(10, 244, 0, 7))),
    ]
}

proptest! {
    /// Or Envoy would talk to itself for ever.
    #[test]
    fn the_proxys_traffic_is_never_outbound(
        settings in settings(), destination in destination(), port in 1..60_u16, by_user in any::<bool>(), other in 0..5_u32,
    ) {
        let mut packet = Packet::outgoing(PROXY, &destination.to_string(), port);
        if by_user { packet.group = other } else { packet.user = other }
        prop_assert_ne!(fate(&settings, &packet), Fate::Redirected(15001));
        prop_assert_ne!(fate(&settings, &packet), Fate::Redirected(15053));
    }

    #[test]
    fn what_is_excluded_is_left_alone(settings in settings(), destination in destination(), port in 1..60_u16) {
        let packet = Packet::outgoing(APPLICATION, &destination.to_string(), port);
        let excluded = settings.outbound_ports_except.contains(&port)
            || settings.outbound_except.iter().any(|range| range.contains(&destination));
        let outcome = fate(&settings, &packet);
        if excluded {
            prop_assert_ne!(outcome, Fate::Redirected(15001));
        }
        let captures_loopback = matches!(
            &settings.outbound, OutboundRanges::Only(ranges) if ranges.iter().any(|range| range.addr().is_loopback())
        );
        if destination.is_loopback() && !captures_loopback {
            prop_assert_ne!(outcome, Fate::Redirected(15001));
        }
        if let InboundPorts::AllBut(ports) = &settings.inbound {
            let expected = match (ports.contains(&port), settings.mode) {
                (true, _) => Fate::Untouched,
                (false, Mode::Redirect) => Fate::Redirected(15006),
                (false, Mode::Tproxy) => Fate::Handed(15006),
            };
            prop_assert_eq!(fate(&settings, &Packet::incoming(port)), expected);
        }
    }

    /// What the kernel would refuse: a jump to a chain that is not there, or in a circle.
    #[test]
    fn jumps_lead_to_chains_and_end(settings in settings()) {
        let plan = Plan::new(&settings);
        for tables in [&plan.v4, &plan.v6] {
            for ((table, chain), rules) in tables {
                prop_assert!(!rules.is_empty());
                for rule in rules {
                    if let Verdict::Jump(to) = rule.verdict {
                        prop_assert!(tables.contains_key(&(*table, to)), "{chain:?} jumps to {to:?}");
                        prop_assert!(to.hook().is_none() && to != *chain);
                        // Only chains at hooks and the two that decide jump, and the latter to those that end.
                        prop_assert!(chain.hook().is_some() || matches!(chain, Chain::Inbound));
                    }
                }
            }
        }
        prop_assert!(Hook::ALL.len() == 2);
    }
}
