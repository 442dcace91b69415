//! A /16 of loopback addresses for one mesh, so that every pod can have an address of its own and the port that it
//! would have in a cluster, whatever else runs on the machine.
//!
//! | addresses (`N` is the number of the network) | for |
//! | --- | --- |
//! | `127.N.1.0` to `127.N.99.255` | pods: 10.244.x.y of a manifest becomes 127.N.x.y |
//! | `127.N.253.z` | listeners of sidecars |
//! | `127.N.254.1` | the gateway |
//! | `127.N.255.1` | weftd |

use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};

use anyhow::{Context, bail};

/// The networks there are. Higher ones belong to the parts that `testkit` starts.
const NETWORKS: std::ops::Range<u8> = 16..128;

/// What addresses of pods start with in the samples.
const POD_PREFIX: &str = "10.244.";

/// A network that is ours while the value lives.
#[derive(Debug)]
pub struct Network {
    number: u8,
    _claim: TcpListener,
}

impl Network {
    /// Claims a network that no other process uses.
    ///
    /// # Errors
    ///
    /// If all are in use, or the system has no loopback addresses but 127.0.0.1.
    pub fn claim() -> anyhow::Result<Self> {
        let mut last = None;
        for number in NETWORKS {
            match TcpListener::bind((Ipv4Addr::new(127, number, 255, 254), 10_001)) {
                Ok(claim) => return Ok(Self { number, _claim: claim }),
                Err(error) => last = Some(error),
            }
        }
        bail!("no free network in 127.16.0.0 to 127.127.0.0: {last:?}")
    }

    /// Returns the address `127.N.third.fourth`.
    pub fn ip(&self, third: u8, fourth: u8) -> Ipv4Addr {
        Ipv4Addr::new(127, self.number, third, fourth)
    }

    /// Returns a port on `127.N.third.fourth`.
    pub fn socket(&self, third: u8, fourth: u8, port: u16) -> SocketAddr {
        SocketAddr::from((self.ip(third, fourth), port))
    }

    /// Returns where gateways listen.
    pub fn gateway(&self, port: u16) -> SocketAddr {
        self.socket(254, 1, port)
    }

    /// Returns a manifest with its pods in this network and its gateways on our address only.
    pub fn localize(&self, manifest: &str) -> String {
        self.bind_gateways(&manifest.replace(POD_PREFIX, &format!("127.{}.", self.number)))
    }

    /// Returns a manifest with its gateways on our address only.
    pub fn bind_gateways(&self, manifest: &str) -> String {
        let bind = format!("  servers:\n  - bind: {}\n    port:", self.ip(254, 1));
        manifest.replace("  servers:\n  - port:", &bind)
    }
}

/// Returns an address of this machine that is not a loopback address: Kubernetes takes those for no endpoints.
///
/// # Errors
///
/// If it has none.
pub fn machine_address() -> anyhow::Result<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).context("cannot make a socket")?;
    // Nothing is sent: this only asks which address would be used.
    socket
        .connect((Ipv4Addr::new(203, 0, 113, 1), 9))
        .context("no address but loopback, which Kubernetes does not take as an endpoint")?;
    match socket.local_addr().context("a socket has an address")?.ip() {
        IpAddr::V4(address) if !address.is_loopback() => Ok(address),
        other => bail!("{other} cannot be the address of pods"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_networks_never_share_addresses() {
        let (one, other) = (Network::claim().unwrap(), Network::claim().unwrap());
        assert_ne!(one.ip(1, 1), other.ip(1, 1));
    }

    #[test]
    fn manifests_are_moved_to_loopback() {
        let network = Network::claim().unwrap();
        let text =
            network.localize("- addresses: [10.244.1.4]\nspec:\n  servers:\n  - port:\n      number: 8080\n");
        let number = network.number;
        assert_eq!(
            text,
            format!(
                "- addresses: [127.{number}.1.4]\nspec:\n  servers:\n  - bind: 127.{number}.254.1\n    port:\n      number: 8080\n"
            )
        );
    }
}
