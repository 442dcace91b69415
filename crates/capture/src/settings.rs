//! What to capture, parsed once.

use ipnet::{IpNet, Ipv4Net};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::str::FromStr;

/// How many groups the rule that captures only some may name: each is a match of its own in one rule of iptables.
const MOST_GROUPS: usize = 64;
/// The kernel's limit for names of interfaces.
const LONGEST_INTERFACE: usize = 15;

/// A value that means nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSetting {
    /// Not a port.
    #[error("{0:?} is not a port")]
    Port(String),
    /// Not a range of addresses.
    #[error("{0:?} is not a range of addresses such as 10.0.0.0/8")]
    Range(String),
    /// `*` where it would leave nothing to capture.
    #[error("\"*\" would exclude everything")]
    ExcludesAll,
    /// Not the name of an interface.
    #[error("{0:?} is not the name of a network interface")]
    Interface(String),
    /// Not a way to intercept.
    #[error("{0:?} is neither REDIRECT nor TPROXY")]
    Mode(String),
    /// Nobody is the proxy.
    #[error("without the proxy's user or group its own traffic would be captured, in circles")]
    NoProxy,
    /// More groups than one rule can have.
    #[error("{0} groups are more than the {MOST_GROUPS} that can be captured by group")]
    TooManyGroups(usize),
    /// Two listeners cannot share a port.
    #[error("port {0} cannot be both that of inbound and that of outbound traffic")]
    SamePort(u16),
    /// Not addresses of the loopback interface.
    #[error("{0} is not a range of loopback addresses")]
    Loopback(Ipv4Net),
    /// A mark that is taken.
    #[error("{0} cannot be the mark of captured packets")]
    Mark(u32),
    /// A routing table that is taken.
    #[error("{0} cannot be a routing table of our own")]
    RouteTable(u32),
}

/// How inbound connections get to Envoy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Mode {
    /// Their destination is rewritten; Envoy asks the kernel for the one that they had.
    #[default]
    Redirect,
    /// They keep their addresses, so that the application can see the client's.
    Tproxy,
}

impl FromStr for Mode {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        match text {
            "REDIRECT" | "" => Ok(Self::Redirect),
            "TPROXY" => Ok(Self::Tproxy),
            _ => Err(InvalidSetting::Mode(text.to_owned())),
        }
    }
}

/// The name of a network interface, or with `+` at the end what its name begins with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interface(String);

impl Interface {
    /// The loopback interface.
    pub fn loopback() -> Self {
        Self("lo".to_owned())
    }

    /// Returns the name, or what it begins with.
    pub fn name(&self) -> &str {
        self.0.strip_suffix('+').unwrap_or(&self.0)
    }

    /// Whether only the beginning is given.
    pub fn is_prefix(&self) -> bool {
        self.0.ends_with('+')
    }

    /// Whether this is `name`, or the beginning of it.
    pub fn is(&self, name: &str) -> bool {
        if self.is_prefix() { name.starts_with(self.name()) } else { name == self.0 }
    }
}

impl FromStr for Interface {
    type Err = InvalidSetting;

    fn from_str(text: &str) -> Result<Self, InvalidSetting> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
        let name = text.strip_suffix('+').unwrap_or(text);
        // A leading dash would be taken for an option.
        let valid = !name.is_empty()
            && text.len() <= LONGEST_INTERFACE
            && name.bytes().all(allowed)
            && !name.starts_with('-')
            && name != "."
            && name != "..";
        if valid { Ok(Self(text.to_owned())) } else { Err(InvalidSetting::Interface(text.to_owned())) }
    }
}

impl fmt::Display for Interface {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Ports of the workload whose traffic goes through Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum InboundPorts {
    /// All but these.
    AllBut(Vec<u16>),
    /// These.
    Only(Vec<u16>),
}

/// Destinations whose traffic goes through Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OutboundRanges {
    /// Every one.
    All,
    /// These.
    Only(Vec<IpNet>),
}

/// Groups of processes whose traffic goes through Envoy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OwnerGroups {
    /// All but these.
    AllBut(Vec<u32>),
    /// These.
    Only(Vec<u32>),
}

/// Which questions to name servers go to the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dns {
    /// None.
    Off,
    /// All.
    All,
    /// Those for these servers.
    Servers(Vec<IpAddr>),
}

/// What TPROXY needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TproxySettings {
    /// The mark of packets that go to Envoy.
    pub mark: u32,
    /// The routing table for marked packets.
    pub table: u32,
}

/// What to capture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Where Envoy listens for outbound traffic.
    pub outbound_port: u16,
    /// Where it listens for inbound traffic.
    pub inbound_port: u16,
    /// Where it listens for tunnels, which are never captured.
    pub tunnel_port: u16,
    /// Users whose traffic is that of the proxy.
    pub users: Vec<u32>,
    /// Groups whose traffic is that of the proxy.
    pub groups: Vec<u32>,
    /// How inbound connections get to Envoy.
    pub mode: Mode,
    /// What TPROXY needs.
    pub tproxy: TproxySettings,
    /// Inbound traffic by port.
    pub inbound: InboundPorts,
    /// Outbound traffic by address.
    pub outbound: OutboundRanges,
    /// Addresses of outbound traffic that is left alone.
    pub outbound_except: Vec<IpNet>,
    /// Ports of outbound traffic that is captured whatever its address, unless that is excluded.
    pub outbound_ports: Vec<u16>,
    /// Ports of outbound traffic that is left alone.
    pub outbound_ports_except: Vec<u16>,
    /// Outbound traffic by who sends it.
    pub owner_groups: OwnerGroups,
    /// Interfaces of virtual machines inside of the pod: what comes in there is outbound traffic.
    pub virtual_interfaces: Vec<Interface>,
    /// Interfaces whose traffic is left alone.
    pub except_interfaces: Vec<Interface>,
    /// Questions to name servers.
    pub dns: Dns,
    /// Whether packets that belong to no connection are dropped instead of answered with a reset.
    pub drop_invalid: bool,
    /// The IPv4 addresses by which processes of the workload speak to each other.
    pub loopback: Ipv4Net,
    /// Whether the workload has IPv6 addresses.
    pub ipv6: bool,
}

impl Default for Settings {
    /// Istio's: the proxy is user 1337, and nothing is captured that is not asked for.
    fn default() -> Self {
        Self {
            outbound_port: 15001,
            inbound_port: 15006,
            tunnel_port: 15008,
            users: vec![1337],
            groups: vec![1337],
            mode: Mode::Redirect,
            tproxy: TproxySettings { mark: 1337, table: 133 },
            inbound: InboundPorts::Only(Vec::new()),
            outbound: OutboundRanges::Only(Vec::new()),
            outbound_except: Vec::new(),
            outbound_ports: Vec::new(),
            outbound_ports_except: Vec::new(),
            owner_groups: OwnerGroups::AllBut(Vec::new()),
            virtual_interfaces: Vec::new(),
            except_interfaces: Vec::new(),
            dns: Dns::Off,
            drop_invalid: false,
            loopback: Ipv4Net::from(Ipv4Addr::LOCALHOST),
            ipv6: false,
        }
    }
}

impl Settings {
    /// Checks what only several settings together show.
    ///
    /// # Errors
    /// The first combination that cannot be.
    pub fn check(&self) -> Result<(), InvalidSetting> {
        if self.users.is_empty() && self.groups.is_empty() {
            return Err(InvalidSetting::NoProxy);
        }
        if self.outbound_port == self.inbound_port {
            return Err(InvalidSetting::SamePort(self.inbound_port));
        }
        for port in [self.outbound_port, self.inbound_port, self.tunnel_port] {
            if port == 0 {
                return Err(InvalidSetting::Port("0".to_owned()));
            }
        }
        if !self.loopback.network().is_loopback() || !self.loopback.broadcast().is_loopback() {
            return Err(InvalidSetting::Loopback(self.loopback));
        }
        match &self.owner_groups {
            OwnerGroups::Only(groups) if groups.len() > MOST_GROUPS => {
                return Err(InvalidSetting::TooManyGroups(groups.len()));
            }
            _ => {}
        }
        // The kernel's own tables, and the mark next to ours.
        match self.tproxy {
            TproxySettings { mark: mark @ (0 | crate::plan::TO_SELF_MARK), .. } => {
                Err(InvalidSetting::Mark(mark))
            }
            TproxySettings { table: table @ (0 | 253..=255), .. } => Err(InvalidSetting::RouteTable(table)),
            TproxySettings { .. } => Ok(()),
        }
    }
}

/// Splits at commas; what is empty is nothing.
pub fn list(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Parses ports that are separated by commas. Each is kept once.
///
/// # Errors
/// The first that is none.
pub fn ports(text: &str) -> Result<Vec<u16>, InvalidSetting> {
    let mut ports = Vec::new();
    for part in list(text) {
        let port = part.parse::<u16>().ok().filter(|port| *port != 0);
        let port = port.ok_or_else(|| InvalidSetting::Port(part.to_owned()))?;
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    Ok(ports)
}

/// Parses ranges of addresses that are separated by commas. Each is kept once; an address alone is a range of one.
///
/// # Errors
/// The first that is none.
pub fn ranges(text: &str) -> Result<Vec<IpNet>, InvalidSetting> {
    let mut ranges = Vec::new();
    for part in list(text) {
        if part == "*" {
            return Err(InvalidSetting::ExcludesAll);
        }
        let range = part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from));
        let range = range.map_err(|_| InvalidSetting::Range(part.to_owned()))?.trunc();
        if !ranges.contains(&range) {
            ranges.push(range);
        }
    }
    Ok(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_parsed_and_each_part_counts_once() {
        assert_eq!(ports("80, 443,,80").unwrap(), [80, 443]);
        assert_eq!(ports("80,http").unwrap_err().to_string(), "\"http\" is not a port");
        assert!(ports("0").is_err() && ports("65536").is_err());
        let found = ranges("10.1.2.3/8,fd00::/64,10.0.0.0/8,192.0.2.1").unwrap();
        let text: Vec<String> = found.iter().map(IpNet::to_string).collect();
        assert_eq!(text, ["10.0.0.0/8", "fd00::/64", "192.0.2.1/32"]);
        assert_eq!(ranges("*"), Err(InvalidSetting::ExcludesAll));
        assert!(ranges("10.0.0.0/33").is_err());
    }

    /// Annotations of pods end up in scripts.
    #[test]
    fn names_of_interfaces_are_nothing_but_names() {
        for name in ["eth0", "net1.100", "br-lan", "cali0123456789a", "eth+"] {
            assert_eq!(name.parse::<Interface>().unwrap().to_string(), name);
        }
        for text in
            ["", "+", "eth0 -j ACCEPT", "eth0\n-A", "eth0\"", "-eth0", "..", "a/b", "sixteencharacter", "e;x"]
        {
            assert!(text.parse::<Interface>().is_err(), "{text:?}");
        }
        assert!("eth+".parse::<Interface>().unwrap().is("eth12"));
        assert!(!"eth1".parse::<Interface>().unwrap().is("eth12"));
    }

    #[test]
    fn combinations_that_cannot_be_are_refused() {
        let refused = |change: &dyn Fn(&mut Settings)| {
            let mut settings = Settings::default();
            change(&mut settings);
            settings.check().unwrap_err()
        };
        assert_eq!(Settings::default().check(), Ok(()));
        let nobody = refused(&|settings| (settings.users, settings.groups) = (Vec::new(), Vec::new()));
        assert_eq!(nobody, InvalidSetting::NoProxy);
        assert_eq!(refused(&|settings| settings.outbound_port = 15006), InvalidSetting::SamePort(15006));
        let many = OwnerGroups::Only((0..65).collect());
        assert_eq!(
            refused(&|settings| settings.owner_groups = many.clone()),
            InvalidSetting::TooManyGroups(65)
        );
        assert_eq!(refused(&|settings| settings.tproxy.table = 254), InvalidSetting::RouteTable(254));
        assert_eq!(refused(&|settings| settings.tproxy.mark = 1338), InvalidSetting::Mark(1338));
        let public = "10.0.0.0/8".parse().unwrap();
        assert_eq!(refused(&|settings| settings.loopback = public), InvalidSetting::Loopback(public));
    }
}
