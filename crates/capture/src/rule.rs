//! Rules as data, whichever program puts them into the kernel.

use crate::settings::Interface;
use ipnet::IpNet;

/// A table of the kernel: when a rule is asked, and what it may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Before connections are tracked.
    Raw,
    /// Before routing.
    Mangle,
    /// Once a connection: where it goes.
    Nat,
}

impl Table {
    /// All, in the order in which a packet meets them.
    pub const ALL: [Self; 3] = [Self::Raw, Self::Mangle, Self::Nat];

    /// Returns the kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
        }
    }
}

/// Where a packet meets a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Hook {
    /// It has come in.
    Prerouting,
    /// A process here has sent it.
    Output,
}

impl Hook {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Prerouting, Self::Output];
}

/// A chain of ours. Each table can have each.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Chain {
    /// Where packets of [`Hook::Prerouting`] begin.
    Prerouting,
    /// Where packets of [`Hook::Output`] begin.
    Output,
    /// Decides about inbound traffic.
    Inbound,
    /// Sends outbound traffic to Envoy.
    Redirect,
    /// Sends inbound traffic to Envoy.
    InRedirect,
    /// Decides about questions to name servers.
    Dns,
    /// Marks packets of connections that Envoy has.
    Divert,
    /// Hands connections to Envoy as they are.
    Tproxy,
    /// Drops.
    Drop,
}

impl Chain {
    /// All.
    pub const ALL: [Self; 9] = [
        Self::Prerouting,
        Self::Output,
        Self::Inbound,
        Self::Redirect,
        Self::InRedirect,
        Self::Dns,
        Self::Divert,
        Self::Tproxy,
        Self::Drop,
    ];

    /// Returns the name, which is Istio's where it has the same chain.
    pub fn name(self) -> &'static str {
        match self {
            Self::Prerouting => "ISTIO_PREROUTING",
            Self::Output => "ISTIO_OUTPUT",
            Self::Inbound => "ISTIO_INBOUND",
            Self::Redirect => "ISTIO_REDIRECT",
            Self::InRedirect => "ISTIO_IN_REDIRECT",
            Self::Dns => "ISTIO_OUTPUT_DNS",
            Self::Divert => "ISTIO_DIVERT",
            Self::Tproxy => "ISTIO_TPROXY",
            Self::Drop => "ISTIO_DROP",
        }
    }

    /// Returns where packets enter this chain from the kernel, if they do.
    pub fn hook(self) -> Option<Hook> {
        match self {
            Self::Prerouting => Some(Hook::Prerouting),
            Self::Output => Some(Hook::Output),
            _ => None,
        }
    }
}

/// A protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// Returns the kernel's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// Equal, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Is<T> {
    /// It is.
    Equal(T),
    /// It is anything else.
    Other(T),
}

/// Whose packet it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Owner {
    /// A user's.
    User(Is<u32>),
    /// A group's.
    Group(Is<u32>),
    /// None of these groups'.
    NoneOf(Vec<u32>),
}

/// What the kernel knows of the packet's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It exists, or belongs to one that does.
    Established,
    /// There is none, and the packet begins none.
    Invalid,
}

/// What happens to a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Back to the chain before; at the beginning: no more of our rules in this table.
    Return,
    /// No more rules in this table.
    Accept,
    /// It is gone.
    Drop,
    /// On with another chain.
    Jump(Chain),
    /// To this port here.
    Redirect(u16),
    /// To the listener on this port, with its addresses kept, and with this mark.
    Tproxy {
        /// The listener's.
        port: u16,
        /// For routing.
        mark: u32,
    },
    /// It gets a mark.
    SetMark(u32),
    /// Its connection gets its mark.
    SaveMark,
    /// It gets its connection's mark.
    RestoreMark,
    /// Its connection is tracked apart from others.
    Zone(u16),
}

/// A rule: a packet that fits in every way meets the verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its protocol.
    pub protocol: Option<Protocol>,
    /// Where it came in.
    pub from_interface: Option<Interface>,
    /// Where it goes out.
    pub to_interface: Option<Interface>,
    /// Where it comes from.
    pub source: Option<IpNet>,
    /// Where it goes.
    pub destination: Option<Is<IpNet>>,
    /// The port that it comes from.
    pub source_port: Option<u16>,
    /// The ports that it goes to.
    pub ports: Option<Is<Vec<u16>>>,
    /// What is known of its connection.
    pub state: Option<State>,
    /// Its mark.
    pub mark: Option<Is<u32>>,
    /// Its connection's mark.
    pub connection_mark: Option<u32>,
    /// Whose it is.
    pub owner: Option<Owner>,
    /// What happens to it.
    pub verdict: Verdict,
}

impl Rule {
    /// Returns the rule for every packet.
    pub(crate) fn new(verdict: Verdict) -> Self {
        Self {
            protocol: None,
            from_interface: None,
            to_interface: None,
            source: None,
            destination: None,
            source_port: None,
            ports: None,
            state: None,
            mark: None,
            connection_mark: None,
            owner: None,
            verdict,
        }
    }

    pub(crate) fn tcp(verdict: Verdict) -> Self {
        Self { protocol: Some(Protocol::Tcp), ..Self::new(verdict) }
    }

    pub(crate) fn udp(verdict: Verdict) -> Self {
        Self { protocol: Some(Protocol::Udp), ..Self::new(verdict) }
    }

    pub(crate) fn from(self, interface: &Interface) -> Self {
        Self { from_interface: Some(interface.clone()), ..self }
    }

    pub(crate) fn to(self, interface: &Interface) -> Self {
        Self { to_interface: Some(interface.clone()), ..self }
    }

    pub(crate) fn source(self, range: IpNet) -> Self {
        Self { source: Some(range), ..self }
    }

    pub(crate) fn destination(self, range: IpNet) -> Self {
        Self { destination: Some(Is::Equal(range)), ..self }
    }

    pub(crate) fn not_to(self, range: IpNet) -> Self {
        Self { destination: Some(Is::Other(range)), ..self }
    }

    pub(crate) fn source_port(self, port: u16) -> Self {
        Self { source_port: Some(port), ..self }
    }

    pub(crate) fn port(self, port: u16) -> Self {
        Self { ports: Some(Is::Equal(vec![port])), ..self }
    }

    pub(crate) fn no_port_of(self, ports: &[u16]) -> Self {
        Self { ports: Some(Is::Other(ports.to_vec())), ..self }
    }

    pub(crate) fn state(self, state: State) -> Self {
        Self { state: Some(state), ..self }
    }

    pub(crate) fn mark(self, mark: Is<u32>) -> Self {
        Self { mark: Some(mark), ..self }
    }

    pub(crate) fn connection_mark(self, mark: u32) -> Self {
        Self { connection_mark: Some(mark), ..self }
    }

    pub(crate) fn owner(self, owner: Owner) -> Self {
        Self { owner: Some(owner), ..self }
    }
}
