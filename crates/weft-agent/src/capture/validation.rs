//! Tries out whether traffic is captured: connects, as the proxy's user, to an address that rules lead to the inbound
//! port, and listens there.
//!
//! With a CNI plugin this is all that the init container does: the plugin sets up the rules, and a pod whose plugin was
//! not there in time must not start without them.

use super::settings::Request;
use ::capture::Family;
use anyhow::Context as _;
use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, socket_with};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is tried, while rules may still be on their way.
const INTERVAL: Duration = Duration::from_millis(100);

/// Traffic is not captured.
#[derive(Debug, thiserror::Error)]
#[error(
    "traffic is not captured: a connection of user {user} to {target} has not come to port {port} within {limit:?}. With a CNI \
     plugin, this pod was started before the plugin of its node was ready: delete it, so that it is made anew"
)]
pub struct NotCaptured {
    user: u32,
    target: SocketAddr,
    port: u16,
    limit: Duration,
}

/// Tries it in every family.
pub(super) fn run(request: &Request) -> anyhow::Result<()> {
    let user = rustix::process::geteuid().as_raw();
    anyhow::ensure!(
        request.settings.users.contains(&user)
            || request.settings.groups.contains(&rustix::process::getegid().as_raw()),
        "only the proxy's user can try capture out: this is user {user}, the proxy is {:?}",
        request.settings.users
    );
    for family in &request.tried {
        try_out(request, *family, user)?;
    }
    Ok(())
}

fn try_out(request: &Request, family: Family, user: u32) -> anyhow::Result<()> {
    let (here, there): (IpAddr, IpAddr) = match family {
        Family::V4 => (Ipv4Addr::LOCALHOST.into(), Ipv4Addr::new(127, 0, 0, 6).into()),
        Family::V6 => (Ipv6Addr::LOCALHOST.into(), Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6).into()),
    };
    let port = request.settings.inbound_port;
    let target = SocketAddr::new(there, request.probe_port);
    let listener = TcpListener::bind((here, port))
        .with_context(|| format!("cannot listen on port {port} to try capture out"))?;
    listener.set_nonblocking(true)?;
    let started = Instant::now();
    loop {
        // Refused, unless it is captured: nobody listens there.
        let attempt = dial(here, target);
        thread::sleep(Duration::from_millis(10));
        while let Ok((connection, _)) = listener.accept() {
            let original = match family {
                Family::V4 => ip_original_dst(&connection).map(SocketAddr::from),
                Family::V6 => ipv6_original_dst(&connection).map(SocketAddr::from),
            };
            if original.is_ok_and(|original| (original.ip(), original.port()) == (target.ip(), target.port()))
            {
                return Ok(());
            }
        }
        tracing::debug!(?attempt, %target, "not captured yet");
        let limit = request.probe_timeout;
        if started.elapsed() >= limit {
            return Err(NotCaptured { user, target, port, limit }.into());
        }
        thread::sleep(INTERVAL);
    }
}

/// Connects from a loopback address that is not the one which is never captured.
fn dial(from: IpAddr, target: SocketAddr) -> rustix::io::Result<std::os::fd::OwnedFd> {
    let family = if target.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(family, SocketType::STREAM, flags, None)?;
    bind(&socket, &SocketAddr::new(from, 0))?;
    match connect(&socket, &target) {
        Ok(()) | Err(rustix::io::Errno::INPROGRESS) => Ok(socket),
        Err(error) => Err(error),
    }
}
