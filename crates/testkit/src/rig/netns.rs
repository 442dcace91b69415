//! A network of a test's own, and pods in it: network namespaces that are joined by a bridge, as on a node.
//!
//! ```text
//! the test, the API server, weftd      10.244.0.1  fd00:10:244::1
//!   └ bridge ─┬─ pod                   10.244.0.2  fd00:10:244::2
//!             └─ pod                   10.244.0.3  fd00:10:244::3
//! ```
//!
//! The test runs itself again in a network namespace in which nothing else is, so that it may use any address and port;
//! when its process ends, the kernel takes everything away. That takes root, and so do programs that run as the proxy's
//! user beside those that do not.

use std::env;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::atomic::{AtomicU8, Ordering};
use std::thread;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::RigError;

/// Says to a test that it runs in a network of its own.
const INSIDE: &str = "WEFT_TESTKIT_NODE";

/// A network of a test's own.
#[derive(Debug)]
pub struct Node {
    pods: AtomicU8,
}

/// Runs `test`, whose name is `name`, with a network of its own.
///
/// Without root this prints one line that starts with `skipped` and returns.
///
/// # Panics
///
/// If the test fails; also without root if `CI=true`, since there nothing may be skipped.
pub fn on_a_node(name: &str, test: impl FnOnce(&Node)) {
    if env::var_os(INSIDE).is_some() {
        return test(&Node::new().unwrap());
    }
    if !rustix::process::geteuid().is_root() {
        assert!(
            env::var_os("CI").is_none_or(|ci| ci != "true"),
            "{name} needs root, which is required in CI"
        );
        println!("skipped: {name} needs root, for network namespaces with several users");
        return;
    }
    let itself = env::current_exe().expect("a test knows its program");
    let mut command = Command::new("unshare");
    command.args(["--net", "--mount", "--propagation", "private", "--"]).arg(itself);
    command.args(["--exact", name, "--nocapture"]).env(INSIDE, "1");
    let output =
        command.output().unwrap_or_else(|error| panic!("cannot run unshare (package util-linux): {error}"));
    let both = [output.stdout, output.stderr].concat();
    // Marked, so that nobody takes them for results of their own.
    let said: String = String::from_utf8_lossy(&both).lines().map(|line| format!("  | {line}\n")).collect();
    assert!(
        output.status.success() && said.contains("1 passed"),
        "{name}, inside: {}\n{said}",
        output.status
    );
    println!("{said}");
}

/// Runs `ip` with these arguments, separated by blanks.
fn ip(arguments: &str) -> Result<(), RigError> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> Result<(), RigError> {
    let output = Command::new(program).args(arguments.split_whitespace()).output();
    let output =
        output.map_err(RigError::io(format!("could not run {program} (packages iproute2, mount)")))?;
    if output.status.success() {
        return Ok(());
    }
    let output = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(RigError::Command { command: format!("{program} {arguments}"), output })
}

impl Node {
    fn new() -> Result<Self, RigError> {
        // Names of namespaces, and iptables' lock, are files there.
        run("mount", "-t tmpfs tmpfs /run")?;
        ip("link set lo up")?;
        ip("link add weft0 type bridge")?;
        ip(&format!("address add {}/16 dev weft0", Self::ADDRESS))?;
        ip(&format!("address add {}/64 dev weft0 nodad", Self::ADDRESS_V6))?;
        ip("link set weft0 up")?;
        Ok(Self { pods: AtomicU8::new(1) })
    }

    /// The address of the node, where what runs outside of pods can be reached.
    pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 244, 0, 1);
    /// The same over IPv6.
    pub const ADDRESS_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 1);

    /// Makes a pod. Its name must be one of a file.
    pub fn pod(&self, name: &str) -> Result<Pod, RigError> {
        let number = self.pods.fetch_add(1, Ordering::Relaxed) + 1;
        let pod = Pod { name: name.to_owned(), number };
        ip(&format!("netns add {name}"))?;
        ip(&format!("link add veth{number} type veth peer name eth0 netns {name}"))?;
        ip(&format!("link set veth{number} master weft0 up"))?;
        let inside = |arguments: &str| ip(&format!("-n {name} {arguments}"));
        inside("link set lo up")?;
        inside("link set eth0 up")?;
        inside(&format!("address add {}/16 dev eth0", pod.address()))?;
        inside(&format!("address add {}/64 dev eth0 nodad", pod.address_v6()))?;
        inside(&format!("route add default via {}", Self::ADDRESS))?;
        inside(&format!("-6 route add default via {}", Self::ADDRESS_V6))?;
        Ok(pod)
    }

    /// Takes a pod's network away, with what is left of its connections. The address is not used again.
    pub fn remove(&self, pod: &Pod) {
        // Its interface goes with it; an error means that it is gone already.
        let _ = ip(&format!("link del veth{}", pod.number));
        let _ = ip(&format!("netns del {}", pod.name));
    }
}

/// A network namespace with addresses of its own.
#[derive(Clone, Debug)]
pub struct Pod {
    name: String,
    number: u8,
}

impl Pod {
    /// Returns the name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns its address.
    pub fn address(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, 0, self.number)
    }

    /// Returns its IPv6 address.
    pub fn address_v6(&self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, self.number.into())
    }

    /// Does something inside: sockets that are made there, threads and processes that are started there belong there.
    ///
    /// # Panics
    ///
    /// If `work` does.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let path = format!("/run/netns/{}", self.name);
        thread::scope(|scope| {
            let inside = scope.spawn(move || {
                let namespace = File::open(&path).expect("a pod's namespace is a file");
                // Of this thread only, and so of what it starts.
                move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                    .expect("root may enter any namespace");
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
