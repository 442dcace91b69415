//! As much of rtnetlink as capture needs: one address, one rule, one route. An image needs no `ip` for that.

use ::capture::Family;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use std::fmt;
use std::io;
use std::net::Ipv6Addr;
use std::os::fd::OwnedFd;

/// The address on the loopback interface from which Envoy connects to its application.
const LOCAL_ADDRESS: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);
/// The index of the loopback interface, in every network namespace.
const LOOPBACK: u32 = 1;

// Names and values are those of linux/netlink.h, rtnetlink.h, if_addr.h and fib_rules.h.
const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
const NLM_F_EXCL: u16 = 0x200;
const NLM_F_CREATE: u16 = 0x400;
const NLMSG_ERROR: u16 = 2;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const RTM_NEWRULE: u16 = 32;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const RTA_OIF: u16 = 4;
const RTA_TABLE: u16 = 15;
const FRA_PRIORITY: u16 = 6;
const FRA_FWMARK: u16 = 10;
const FRA_TABLE: u16 = 15;
const RTN_LOCAL: u8 = 2;
const RTPROT_BOOT: u8 = 3;
const RT_SCOPE_HOST: u8 = 254;
const FR_ACT_TO_TBL: u8 = 1;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// Just before the main routing table. Without one, the kernel would take rules that are equal for different ones.
const PRIORITY: u32 = 32765;
/// As often as a thing is removed at most.
const MOST: usize = 100;
/// The size of `struct nlmsghdr`.
const HEADER: usize = 16;

/// What is added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Object {
    /// `::6` on the loopback interface.
    LocalAddress,
    /// Everything is local, says a routing table.
    LocalRoute {
        /// For whom.
        family: Family,
        /// The table.
        table: u32,
    },
    /// What is marked is looked up there.
    MarkRule {
        /// For whom.
        family: Family,
        /// The mark.
        mark: u32,
        /// The table.
        table: u32,
    },
}

/// As `ip` would be told.
impl fmt::Display for Object {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let version = |family: &Family| if *family == Family::V4 { 4 } else { 6 };
        match self {
            Self::LocalAddress => write!(f, "ip -6 address add {LOCAL_ADDRESS}/128 dev lo"),
            Self::LocalRoute { family, table } => {
                write!(f, "ip -{} route add local default dev lo table {table}", version(family))
            }
            Self::MarkRule { family, mark, table } => {
                write!(f, "ip -{} rule add fwmark {mark} lookup {table}", version(family))
            }
        }
    }
}

/// What to do with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is to be there.
    Add,
    /// It is not to be there.
    Remove,
}

/// A conversation with the kernel.
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    pub(super) fn new() -> io::Result<Self> {
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Adds or removes. That it is so already is fine; what is there several times is removed as often.
    pub(super) fn change(&mut self, change: Change, object: &Object) -> io::Result<()> {
        for _ in 0..MOST {
            if !self.change_one(change, object)? {
                return Ok(());
            }
            if change == Change::Add {
                break;
            }
        }
        Ok(())
    }

    /// Returns whether something has changed.
    fn change_one(&mut self, change: Change, object: &Object) -> io::Result<bool> {
        self.sequence += 1;
        send(&self.socket, &message(change, object, self.sequence), SendFlags::empty())?;
        let mut answer = [0; 4096];
        let (_, length) = recv(&self.socket, &mut answer[..], RecvFlags::empty())?;
        let error = error_of(&answer[..length])
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer is none"))?;
        let error = io::Error::from_raw_os_error(error);
        match (change, error.raw_os_error().unwrap_or_default()) {
            (_, 0) => Ok(true),
            (Change::Add, EEXIST) | (Change::Remove, ENOENT | ESRCH | EADDRNOTAVAIL | EAFNOSUPPORT) => {
                Ok(false)
            }
            _ => Err(error),
        }
    }
}

const ENOENT: i32 = 2;
const ESRCH: i32 = 3;
const EEXIST: i32 = 17;
const EAFNOSUPPORT: i32 = 97;
const EADDRNOTAVAIL: i32 = 99;

/// Returns the error number of an acknowledgement, which is zero for success.
fn error_of(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let error = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then(|| error.saturating_neg())
}

fn message(change: Change, object: &Object, sequence: u32) -> Vec<u8> {
    let number = |family: &Family| if *family == Family::V4 { AF_INET } else { AF_INET6 };
    let (kind, body, mut attributes) = match object {
        Object::LocalAddress => {
            let address = LOCAL_ADDRESS.octets().to_vec();
            let mut body = vec![AF_INET6, 128, 0, 0];
            body.extend(LOOPBACK.to_ne_bytes());
            (RTM_NEWADDR, body, vec![(IFA_LOCAL, address.clone()), (IFA_ADDRESS, address)])
        }
        Object::LocalRoute { family, table } => (
            RTM_NEWROUTE,
            vec![number(family), 0, 0, 0, 0, RTPROT_BOOT, RT_SCOPE_HOST, RTN_LOCAL, 0, 0, 0, 0],
            vec![(RTA_OIF, LOOPBACK.to_ne_bytes().to_vec()), (RTA_TABLE, table.to_ne_bytes().to_vec())],
        ),
        Object::MarkRule { family, mark, table } => (
            RTM_NEWRULE,
            vec![number(family), 0, 0, 0, 0, 0, 0, FR_ACT_TO_TBL, 0, 0, 0, 0],
            vec![(FRA_FWMARK, mark.to_ne_bytes().to_vec()), (FRA_TABLE, table.to_ne_bytes().to_vec())],
        ),
    };
    let (kind, flags) = match change {
        Change::Add => (kind, NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL),
        // Each removal's number is that of its addition, plus one.
        Change::Remove => (kind + 1, NLM_F_REQUEST | NLM_F_ACK),
    };
    // Removed is a rule of any priority, such as Istio's.
    if change == Change::Add && kind == RTM_NEWRULE {
        attributes.push((FRA_PRIORITY, PRIORITY.to_ne_bytes().to_vec()));
    }
    let mut payload = body;
    for (name, value) in attributes {
        let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
        payload.extend(length.to_ne_bytes());
        payload.extend(name.to_ne_bytes());
        payload.extend(value);
        payload.resize(payload.len().next_multiple_of(4), 0);
    }
    let length = u32::try_from(HEADER + payload.len()).unwrap_or(u32::MAX);
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(sequence.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(payload);
    message
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_their_length_and_answers_their_error() {
        let objects = [
            Object::LocalAddress,
            Object::LocalRoute { family: Family::V6, table: 133 },
            Object::MarkRule { family: Family::V4, mark: 1337, table: 133 },
        ];
        for object in objects {
            let message = message(Change::Add, &object, 7);
            assert_eq!(message.len() % 4, 0, "{object}");
            assert_eq!(
                u32::from_ne_bytes(message[..4].try_into().unwrap()) as usize,
                message.len(),
                "{object}"
            );
        }
        let mut answer = vec![0; 36];
        answer[4..6].copy_from_slice(&NLMSG_ERROR.to_ne_bytes());
        answer[16..20].copy_from_slice(&(-EEXIST).to_ne_bytes());
        assert_eq!(error_of(&answer), Some(EEXIST));
        assert_eq!(error_of(&answer[..10]), None);
    }
}
