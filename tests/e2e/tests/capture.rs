//! What `weft-agent capture` has the kernel do, tried with connections. In the proxy's place are listeners that say to
//! which port a connection came, and where it was going.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Output};
use std::thread;
use std::time::Duration;

use e2e::weftd;
use rustix::net::sockopt::{ip_original_dst, ipv6_original_dst};
use testkit::rig::netns::{Node, Pod, on_a_node};
use testkit::rig::process::{Process, Scratch};

const PROXY: u32 = 1337;
/// The address of a service, which nobody has.
const SERVICE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, 0x10);
/// As the injector's init container is called, and one of everything that annotations can add.
const ARGUMENTS: [&str; 18] = [
    "istio-iptables",
    "-p",
    "15001",
    "-z",
    "15006",
    "-u",
    "1337",
    "-m",
    "REDIRECT",
    "-i",
    "*",
    "-x",
    "",
    "-b",
    "*",
    "-d",
    "15090,15021,15020",
    "--log_output_level=default:info",
];

/// A workload in which everything says who it is, and another pod.
struct Rig<'a> {
    app: &'a Pod,
    peer: &'a Pod,
    agent: std::path::PathBuf,
    _scratch: Scratch,
}

impl<'a> Rig<'a> {
    /// Without anybody who listens.
    fn bare(app: &'a Pod, peer: &'a Pod) -> Self {
        let scratch = Scratch::new("capture").unwrap();
        // Where the proxy's user can run it.
        let agent = e2e::identity::for_everybody(&weftd::agent().unwrap(), scratch.path()).unwrap();
        Self { app, peer, agent, _scratch: scratch }
    }

    fn new(app: &'a Pod, peer: &'a Pod) -> Self {
        app.run(|| {
            for port in [15001, 15006] {
                answer((Ipv4Addr::UNSPECIFIED, port).into(), move |stream| came_to(port, stream));
                answer((Ipv6Addr::UNSPECIFIED, port).into(), move |stream| came_to(port, stream));
            }
            for port in [7000, 15021] {
                answer((Ipv6Addr::UNSPECIFIED, port).into(), move |_| format!("app {port}"));
                answer((Ipv4Addr::UNSPECIFIED, port).into(), move |_| format!("app {port}"));
            }
        });
        peer.run(|| {
            for port in [8080, 9999] {
                answer((Ipv6Addr::UNSPECIFIED, port).into(), move |_| format!("peer {port}"));
                answer((Ipv4Addr::UNSPECIFIED, port).into(), move |_| format!("peer {port}"));
            }
        });
        Self::bare(app, peer)
    }

    /// Runs the agent inside of the workload.
    fn agent(&self, user: u32, arguments: &[&str]) -> Output {
        self.agent_with(PATH, user, arguments)
    }

    /// Runs it with programs of these folders only.
    fn agent_with(&self, path: &str, user: u32, arguments: &[&str]) -> Output {
        let mut command = Command::new(&self.agent);
        command.args(arguments).uid(user).gid(user).env_clear().env("PATH", path);
        self.app.run(|| command.output()).unwrap()
    }

    fn capture(&self, more: &[&str]) -> String {
        let output = self.agent(0, &[&ARGUMENTS[..], &["--families", "dual"], more].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.success(), "{said}");
        said
    }

    fn app_to(&self, to: impl Into<IpAddr>, port: u16) -> String {
        let to = SocketAddr::new(to.into(), port);
        self.app.run(|| dial(to))
    }

    fn peer_to(&self, to: impl Into<IpAddr>, port: u16) -> String {
        let to = SocketAddr::new(to.into(), port);
        self.peer.run(|| dial(to))
    }

    /// As a user and group of their own, which only a process can be.
    fn as_user(&self, user: u32, group: u32, to: impl Into<IpAddr>, port: u16) -> String {
        const DIAL: &str = "import socket, sys
try: print(socket.create_connection((sys.argv[1], int(sys.argv[2])), 5).makefile().read(), end='')
except OSError as error: print(type(error).__name__, end='')";
        let (to, port) = (to.into().to_string(), port.to_string());
        let mut command = Command::new("python3");
        command.args(["-c", DIAL, &to, &port]).uid(user).gid(group);
        let output = self.app.run(|| command.output()).unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Everything that the kernel has, without counters and times.
    fn rules(&self) -> String {
        let programs = [
            "nft list ruleset",
            "iptables-save",
            "ip6tables-save",
            "ip rule",
            "ip -6 rule",
            "ip -6 address show lo",
            "ip route show table all",
            "ip -6 route show table all",
        ];
        let dump = |words: &str| {
            let mut words = words.split_whitespace();
            let output = self.app.run(|| Command::new(words.next().unwrap()).args(words).output()).unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            // Routes of the interface are not ours, and come by themselves when it is up.
            let ours = |line: &&str| !["# ", "valid_lft", "dev eth0"].iter().any(|part| line.contains(part));
            let lines = text.lines().filter(ours);
            lines.map(without_counters).collect::<Vec<_>>().join("\n")
        };
        programs.map(dump).join("\n")
    }
}

/// Cuts out how many packets and bytes have met a rule, and until when an address is valid.
fn without_counters(line: &str) -> String {
    let line = line.split(" [").next().unwrap_or(line).split(" expires").next().unwrap_or(line);
    let mut words = Vec::new();
    let mut all = line.split(' ');
    while let Some(word) = all.next() {
        words.push(word);
        if matches!(word, "packets" | "bytes") {
            all.next();
        }
    }
    words.join(" ")
}

/// Shows what differs, which is little of it.
fn assert_same(found: &str, expected: &str, when: &str) {
    let only = |one: &str, other: &str| -> Vec<String> {
        one.lines().filter(|line| !other.lines().any(|wanted| wanted == *line)).map(str::to_owned).collect()
    };
    assert!(
        found == expected,
        "{when}: too much {:#?}, too little {:#?}",
        only(found, expected),
        only(expected, found)
    );
}

const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn answer(at: SocketAddr, with: impl Fn(&TcpStream) -> String + Send + 'static) {
    let socket = match at {
        // Beside the one for IPv4.
        SocketAddr::V6(_) => {
            use rustix::net::{AddressFamily, SocketType, bind, listen, socket, sockopt};
            let socket = socket(AddressFamily::INET6, SocketType::STREAM, None).unwrap();
            sockopt::set_ipv6_v6only(&socket, true).unwrap();
            bind(&socket, &at).unwrap();
            listen(&socket, 64).unwrap();
            TcpListener::from(socket)
        }
        SocketAddr::V4(_) => TcpListener::bind(at).unwrap(),
    };
    thread::spawn(move || {
        for mut stream in socket.incoming().flatten() {
            let _ = stream.write_all(with(&stream).as_bytes());
        }
    });
}

/// Says to which port it came, and where it was going.
fn came_to(port: u16, stream: &TcpStream) -> String {
    let to = match stream.local_addr().unwrap() {
        SocketAddr::V4(_) => ip_original_dst(stream).map(SocketAddr::from),
        SocketAddr::V6(_) => ipv6_original_dst(stream).map(SocketAddr::from),
    };
    to.map_or_else(
        |error| error.to_string(),
        |to| format!("{port} for {}", SocketAddr::new(to.ip(), to.port())),
    )
}

fn dial(to: SocketAddr) -> String {
    let asked = || -> std::io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&to, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    };
    asked().unwrap_or_else(|error| format!("{:?}", error.kind()))
}

#[test]
fn traffic_goes_where_the_rules_say() {
    on_a_node("traffic_goes_where_the_rules_say", |node: &Node| {
        for backend in ["nftables", "iptables"] {
            let (app, peer) =
                (node.pod(&format!("app-{backend}")).unwrap(), node.pod(&format!("peer-{backend}")).unwrap());
            let rig = Rig::new(&app, &peer);
            assert_eq!(rig.app_to(peer.address(), 8080), "peer 8080", "nothing is captured yet");
            let said = rig.capture(&["-o", "9999", "-x", "10.244.0.1/32", "--backend", backend]);
            let program = if backend == "nftables" { "by=\"nft\"" } else { "by=\"iptables-restore\"" };
            assert!(said.contains(program), "{said}");
            outbound(&rig);
            inbound(&rig);
        }
    });
}

fn outbound(rig: &Rig<'_>) {
    let (app, peer) = (rig.app, rig.peer);
    assert_eq!(rig.app_to(SERVICE, 80), "15001 for 10.96.0.10:80");
    assert_eq!(rig.app_to(SERVICE_V6, 80), format!("15001 for [{SERVICE_V6}]:80"));
    assert_eq!(rig.app_to(peer.address(), 8080), format!("15001 for {}:8080", peer.address()));
    assert_eq!(rig.app_to(peer.address(), 9999), "peer 9999", "an excluded port");
    assert_eq!(rig.app_to(peer.address_v6(), 9999), "peer 9999", "an excluded port");
    assert_eq!(rig.app_to(Node::ADDRESS, 1), "ConnectionRefused", "an excluded address");
    // To itself.
    assert_eq!(rig.app_to(Ipv4Addr::LOCALHOST, 7000), "app 7000");
    assert_eq!(rig.app_to(Ipv6Addr::LOCALHOST, 7000), "app 7000");
    assert_eq!(rig.app_to(app.address(), 7000), "app 7000");
    // The proxy, known by its user or by its group.
    for (user, group) in [(PROXY, PROXY), (PROXY, 5), (5, PROXY)] {
        assert_eq!(rig.as_user(user, group, peer.address(), 8080), "peer 8080", "{user} {group}");
        assert_eq!(rig.as_user(user, group, peer.address_v6(), 8080), "peer 8080", "{user} {group}");
    }
    assert_eq!(rig.as_user(5, 5, SERVICE, 80), "15001 for 10.96.0.10:80");
    let itself = format!("15006 for {}:7000", app.address());
    assert_eq!(rig.as_user(PROXY, PROXY, app.address(), 7000), itself);
    assert_eq!(rig.as_user(PROXY, PROXY, Ipv4Addr::LOCALHOST, 7000), "app 7000");
}

fn inbound(rig: &Rig<'_>) {
    let app = rig.app;
    assert_eq!(rig.peer_to(app.address(), 7000), format!("15006 for {}:7000", app.address()));
    assert_eq!(rig.peer_to(app.address(), 4), format!("15006 for {}:4", app.address()));
    assert_eq!(rig.peer_to(app.address_v6(), 7000), format!("15006 for [{}]:7000", app.address_v6()));
    assert_eq!(rig.peer_to(app.address(), 15021), "app 15021", "an excluded port");
    assert_eq!(rig.peer_to(app.address(), 15008), "ConnectionRefused", "the port of tunnels");
}

/// As the container that waits for a CNI plugin.
#[test]
fn it_can_be_tried_out_whether_traffic_is_captured() {
    on_a_node("it_can_be_tried_out_whether_traffic_is_captured", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::bare(&app, &peer);
        let try_out = |user, more: &[&str]| {
            let arguments = ["--run-validation", "--skip-rule-apply", "--probe-timeout", "300ms"];
            let output = rig.agent(user, &[&ARGUMENTS[..], &arguments[..], more].concat());
            (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let (code, said) = try_out(PROXY, &[]);
        assert_eq!(code, Some(126), "{said}");
        assert!(said.contains("traffic is not captured: a connection of user 1337"), "{said}");
        for backend in ["nftables", "iptables"] {
            rig.capture(&["--backend", backend]);
            let (code, said) = try_out(PROXY, &["--probe-timeout", "60s"]);
            assert_eq!(code, Some(0), "{backend}: {said}");
            let (code, said) = try_out(PROXY, &["-z", "15066"]);
            assert_eq!(code, Some(126), "nothing leads to another port: {said}");
            let (code, said) = try_out(5, &[]);
            assert_eq!(code, Some(1), "{said}");
            assert!(said.contains("only the proxy's user can try capture out"), "{said}");
        }
    });
}

#[test]
fn a_second_run_changes_nothing_and_cleaning_leaves_nothing() {
    on_a_node("a_second_run_changes_nothing_and_cleaning_leaves_nothing", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::new(&app, &peer);
        // iptables makes its tables when it is first asked, and keeps them.
        for mode in ["REDIRECT", "TPROXY"] {
            rig.capture(&["--backend", "iptables", "-m", mode, "--drop-invalid"]);
        }
        rig.agent(0, &["capture", "--cleanup-only"]);
        let before = rig.rules();
        assert!(!before.contains("ISTIO_") && !before.contains("weft_capture"), "{before}");
        for mode in ["REDIRECT", "TPROXY"] {
            for backend in ["nftables", "iptables"] {
                rig.capture(&["-m", mode, "--backend", backend]);
                let once = rig.rules();
                assert_ne!(once, before);
                rig.capture(&["-m", mode, "--backend", backend]);
                assert_same(&rig.rules(), &once, &format!("{mode} {backend}"));
                assert_eq!(rig.app_to(SERVICE, 80), "15001 for 10.96.0.10:80", "{mode} {backend}");
            }
            // One of them takes over from the other.
            assert!(!rig.rules().contains("weft_capture"));
            rig.capture(&["-m", mode, "--backend", "nftables"]);
            assert!(!rig.rules().contains("ISTIO_OUTPUT"), "{}", rig.rules());
        }
        let output = rig.agent(0, &["istio-iptables", "--cleanup-only"]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_same(&rig.rules(), &before, "after cleaning");
        assert_eq!(rig.app_to(peer.address(), 8080), "peer 8080");
    });
}

/// With nftables: there is no moment at which a connection escapes.
#[test]
fn nothing_escapes_while_rules_are_replaced() {
    on_a_node("nothing_escapes_while_rules_are_replaced", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::new(&app, &peer);
        rig.capture(&["--backend", "nftables"]);
        let captured = format!("15001 for {}:8080", peer.address());
        let stop = std::sync::atomic::AtomicBool::new(false);
        thread::scope(|scope| {
            let load = scope.spawn(|| {
                let mut count = 0;
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    for _ in 0..20 {
                        assert_eq!(rig.app_to(peer.address(), 8080), captured);
                        count += 1;
                    }
                }
                count
            });
            for _ in 0..20 {
                rig.capture(&["--backend", "nftables"]);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
            assert!(load.join().unwrap() >= 20);
        });
    });
}

#[test]
fn questions_to_name_servers_come_to_the_agents_port() {
    on_a_node("questions_to_name_servers_come_to_the_agents_port", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::new(&app, &peer);
        peer.run(|| {
            let socket = UdpSocket::bind((peer.address(), 53)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((_, client)) = socket.recv_from(&mut buffer) {
                    let _ = socket.send_to(b"server", client);
                }
            });
        });
        // Rules know the agent's answers by its user.
        const AGENT: &str = "import socket
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(('127.0.0.1', 15053))
while True: server.sendto(b'agent', server.recvfrom(512)[1])";
        let scratch = Scratch::new("dns").unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", AGENT]).uid(PROXY).gid(PROXY);
        let agent = app.run(|| Process::spawn("python3", command, scratch.path().join("log"))).unwrap();
        let listens = || {
            std::fs::read_to_string(format!("/proc/{}/net/udp", agent.id()))
                .ok()?
                .contains(":3ACD ")
                .then_some(())
        };
        agent.wait_until("the agent to listen", Duration::from_secs(30), listens).unwrap();
        let ask = |to: Ipv4Addr| {
            app.run(|| {
                let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
                socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
                // An answer from anybody else would not be taken.
                socket.connect((to, 53)).unwrap();
                socket.send(b"?").unwrap();
                let mut buffer = [0; 512];
                let length = socket.recv(&mut buffer).unwrap();
                String::from_utf8_lossy(&buffer[..length]).into_owned()
            })
        };
        for backend in ["nftables", "iptables"] {
            rig.capture(&["--redirect-dns", "--capture-all-dns", "--backend", backend]);
            assert_eq!(ask(peer.address()), "agent", "{backend}");
            assert_eq!(ask(SERVICE), "agent", "{backend}");
            rig.agent(0, &["capture", "--cleanup-only"]);
            assert_eq!(ask(peer.address()), "server", "{backend}");
        }
    });
}

/// An image needs either.
#[test]
fn one_of_the_programs_is_enough() {
    on_a_node("one_of_the_programs_is_enough", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::new(&app, &peer);
        let iptables = ["iptables-save", "iptables-restore", "ip6tables-save", "ip6tables-restore"];
        for (programs, by) in [(&["nft"][..], "by=\"nft\""), (&iptables[..], "by=\"iptables-restore\"")] {
            let scratch = Scratch::new("capture").unwrap();
            for program in programs {
                let found = PATH.split(':').map(|folder| std::path::Path::new(folder).join(program));
                let found = found.into_iter().find(|path| path.exists()).unwrap();
                std::os::unix::fs::symlink(found, scratch.path().join(program)).unwrap();
            }
            let path = scratch.path().display().to_string();
            let output = rig.agent_with(&path, 0, &ARGUMENTS);
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(output.status.success() && said.contains(by), "{said}");
            assert_eq!(rig.app_to(SERVICE, 80), "15001 for 10.96.0.10:80", "{by}");
            rig.agent(0, &["capture", "--cleanup-only"]);
            assert_eq!(rig.app_to(peer.address(), 8080), "peer 8080", "{by}");
        }
    });
}

/// What is missing is named: the capability, and with that the program.
#[test]
fn who_may_not_is_told_what_is_missing() {
    on_a_node("who_may_not_is_told_what_is_missing", |node| {
        let (app, peer) = (node.pod("app").unwrap(), node.pod("peer").unwrap());
        let rig = Rig::new(&app, &peer);
        let output = rig.agent(PROXY, &ARGUMENTS);
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("NET_ADMIN") && said.contains("nft") && said.contains("iptables"), "{said}");
    });
}
