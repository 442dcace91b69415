use super::*;
use crate::args::{Args, Command};
use clap::Parser as _;
use std::collections::BTreeMap;
use std::io;

const V6: &str = "fd000000000000000000000000000007 02 40 00 80     eth0\n";
const LOOPBACK_V6: &str = "00000000000000000000000000000001 01 80 10 80       lo\n";

fn load(words: &str, variables: &[(&str, &str)], files: &[(&str, &str)]) -> anyhow::Result<Request> {
    let words = ["weft-agent", "capture"].into_iter().chain(words.split_whitespace());
    let Command::Capture(args) = Args::try_parse_from(words)?.command else { panic!("another command") };
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let read = |path: &Path| {
        let text = path.to_str().and_then(|path| files.get(path));
        text.map(|text| (*text).to_owned()).ok_or_else(|| io::ErrorKind::NotFound.into())
    };
    Request::load(&args, &variables.iter().copied().collect::<Environment>(), &read)
}

fn error(words: &str, variables: &[(&str, &str)]) -> String {
    load(words, variables, &[]).unwrap_err().to_string()
}

#[test]
fn nothing_is_captured_unless_asked_for() {
    let request = load("", &[], &[]).unwrap();
    assert_eq!(request.settings, Settings::default());
    assert!(request.applies && !request.validates && !request.is_dry_run && !request.cleans);
    assert_eq!(request.kernel, [Family::V4]);
}

#[test]
fn variables_count_where_flags_are_missing() {
    let variables =
        [("ENVOY_PORT", "16001"), ("ISTIO_INBOUND_PORTS", "*"), ("ISTIO_LOCAL_EXCLUDE_PORTS", "22")];
    let request = load("-z 16006", &variables, &[]).unwrap();
    assert_eq!((request.settings.outbound_port, request.settings.inbound_port), (16001, 16006));
    assert_eq!(request.settings.inbound, InboundPorts::AllBut(vec![22]));
    let request = load("-p 17001 -b 80", &variables, &[]).unwrap();
    assert_eq!(request.settings.outbound_port, 17001);
    assert_eq!(request.settings.inbound, InboundPorts::Only(vec![80]));
}

#[test]
fn errors_name_the_flag_or_the_variable() {
    assert_eq!(error("-p many", &[]), "--envoy-port: \"many\" is not a number that fits");
    assert_eq!(error("", &[("ENVOY_PORT", "many")]), "ENVOY_PORT: \"many\" is not a number that fits");
    assert!(error("-i 10.0.0.0/8,10.0.0", &[]).starts_with("--istio-service-cidr: \"10.0.0\""));
    assert_eq!(error("-x *", &[]), "--istio-service-exclude-cidr: \"*\" would exclude everything");
    assert!(error("-c eth0;reboot", &[]).starts_with("--istio-exclude-interfaces: "));
    assert!(error("-m NONE", &[]).contains("neither REDIRECT nor TPROXY"));
    assert!(error("", &[("ISTIO_OUTBOUND_OWNER_GROUPS", "nosuch")]).contains("there is no group \"nosuch\""));
    assert_eq!(error("--families dual", &[]), "IPv6 is asked for, and the kernel has none");
}

#[test]
fn the_proxys_user_is_looked_up() {
    let passwd = [("/etc/passwd", "root:x:0:0::/:\nistio-proxy:x:998:997::/:\nenvoy:x:42:42::/:\n")];
    let users = |words: &str, variables: &[(&str, &str)]| {
        let settings = load(words, variables, &passwd).unwrap().settings;
        (settings.users, settings.groups)
    };
    assert_eq!(users("", &[]), (vec![998], vec![998]));
    assert_eq!(users("", &[("ENVOY_USER", "envoy")]), (vec![42], vec![42]));
    assert_eq!(users("-u 3,4 -g 1,2", &[]), (vec![3, 4], vec![1, 2]));
}

#[test]
fn groups_may_be_names() {
    let group = [("/etc/group", "java:x:55:\n")];
    let groups = |variables: &[(&str, &str)]| load("", variables, &group).unwrap().settings.owner_groups;
    assert_eq!(groups(&[("ISTIO_OUTBOUND_OWNER_GROUPS", "java,202")]), OwnerGroups::Only(vec![55, 202]));
    let but = [("ISTIO_OUTBOUND_OWNER_GROUPS", "*"), ("ISTIO_OUTBOUND_OWNER_GROUPS_EXCLUDE", "java")];
    assert_eq!(groups(&but), OwnerGroups::AllBut(vec![55]));
}

#[test]
fn ipv6_is_captured_if_it_is_all_there_is_or_asked_for() {
    const V4: &str = "|-- 10.244.0.7\n  /32 host LOCAL\n";
    let load_with = |if_inet6: &str, fib_trie: &str, words: &str, variables: &[(&str, &str)]| {
        let files = [("/proc/net/if_inet6", if_inet6), ("/proc/net/fib_trie", fib_trie)];
        let request = load(words, variables, &files).unwrap();
        (request.settings.ipv6, request.warnings.len())
    };
    let load = |if_inet6: &str, fib_trie: &str, words: &str| load_with(if_inet6, fib_trie, words, &[]);
    assert_eq!(load_with(V6, V4, "", &[("ISTIO_DUAL_STACK", "true")]), (true, 0), "the proxy knows it too");
    assert_eq!(load(V6, "", ""), (true, 0));
    assert_eq!(load(V6, V4, ""), (false, 0), "nobody would listen");
    assert_eq!(load(V6, V4, "--families dual"), (true, 1));
    assert_eq!(load(V6, V4, "--dual-stack"), (true, 1));
    assert_eq!(load(LOOPBACK_V6, "", ""), (false, 0));
    assert_eq!(load(V6, "", "--families ipv4"), (false, 0));
}

#[test]
fn name_servers_are_those_of_the_workload() {
    let files =
        [("/etc/resolv.conf", "search a.b\nnameserver 10.96.0.10\nnameserver fe80::1%eth0\nnameserver x\n")];
    let capture = [("ISTIO_META_DNS_CAPTURE", "true")];
    let request = load("", &capture, &files).unwrap();
    let servers = ["10.96.0.10", "fe80::1"].map(|server| server.parse().unwrap());
    assert_eq!(request.settings.dns, Dns::Servers(servers.to_vec()));
    assert_eq!(request.warnings.len(), 1);
    assert_eq!(load("--redirect-dns=false", &capture, &files).unwrap().settings.dns, Dns::Off);
    assert_eq!(load("--capture-all-dns", &capture, &[]).unwrap().settings.dns, Dns::All);
    assert!(load("", &capture, &[]).is_err());
}
