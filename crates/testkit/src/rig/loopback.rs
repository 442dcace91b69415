//! Loopback addresses, one for each part or 'pod'.
//!
//! On Linux all of 127.0.0.0/8 is usable as it is: any program may listen on any of its addresses, without root and
//! without adding them to an interface. So each pod can have an IP of its own and the ports it would have in a
//! cluster. (macOS has 127.0.0.1 only, until `ifconfig lo0 alias` adds others.)
//!
//! Each test process draws from 1,022 addresses of its own, derived from its process id, so that test binaries can
//! run side by side.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use super::RigError;

/// The low bits number the addresses of one process.
const HOST_BITS: u32 = 10;
/// The bits between, 13 of the process id: with the highest bit set, 127.0.0.1 and its neighbours stay free.
const PROCESS_BITS: u32 = 13;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// Returns a loopback address that no other caller of this process has been given.
///
/// # Panics
///
/// When the process has used all 1,022 of its addresses.
pub fn address() -> Ipv4Addr {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    assert!(number < (1 << HOST_BITS) - 1, "this process has used all its loopback addresses; reuse some");
    nth(process::id(), number)
}

/// Returns an address of this process's own with a port that is free on it.
pub fn socket() -> Result<SocketAddr, RigError> {
    let address = address();
    let port = free_port(address).map_err(RigError::io(format!("no free port on {address}")))?;
    Ok(SocketAddr::from((address, port)))
}

/// Returns a port that is free on `address` now. It is yours for long only if the address is.
pub fn free_port(address: Ipv4Addr) -> io::Result<u16> {
    Ok(TcpListener::bind((address, 0))?.local_addr()?.port())
}

fn nth(process: u32, number: u32) -> Ipv4Addr {
    let block = process & ((1 << PROCESS_BITS) - 1);
    Ipv4Addr::from_bits(0x7f80_0000 | (block << HOST_BITS) | number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_loopback_and_distinct() {
        let (one, other) = (address(), address());
        assert_ne!(one, other);
        assert!(one.is_loopback() && other.is_loopback());
        assert_eq!(nth(1, 1), Ipv4Addr::new(127, 128, 4, 1));
        assert_eq!(nth(0xffff_ffff, 1022), Ipv4Addr::new(127, 255, 255, 254));
    }

    #[test]
    fn neighbouring_processes_do_not_share_addresses() {
        assert!(nth(7, 1022) < nth(8, 1));
    }

    #[test]
    fn one_can_listen_on_them() {
        let socket = socket().unwrap();
        TcpListener::bind(socket).unwrap();
    }
}
