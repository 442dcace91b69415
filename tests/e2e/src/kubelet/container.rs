//! One container: what its spec says, as a process that has it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use testkit::rig::netns::Pod;
use testkit::rig::process::Process;

use super::images::{self, Image};
use super::volumes::Volumes;
use super::{environment, text};

/// How a container is run; `launch.py` says what comes of it.
const LAUNCHER: &str = include_str!("launch.py");

/// What a container has that says nothing about capabilities, as containerd and CRI-O have it.
const USUAL: [&str; 11] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "NET_BIND_SERVICE",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];
/// The numbers of capabilities are their places in this list.
const CAPABILITIES: [&str; 23] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
];
/// The number of `SETFCAP`, which comes after those that nobody asks for.
const SETFCAP: usize = 31;

/// Where a container runs, and what it has from its pod.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ground<'a> {
    /// The pod, as the API server has it, with its addresses.
    pub(super) pod: &'a Value,
    /// Its network.
    pub(super) network: &'a Pod,
    /// Its volumes.
    pub(super) volumes: &'a Volumes,
    /// The folder of the pod.
    pub(super) folder: &'a Path,
}

/// A running container; killed on drop.
#[derive(Debug)]
pub(super) struct Container {
    process: Process,
    user: (u32, u32),
}

impl Container {
    /// Starts the container that `spec` describes.
    pub(super) fn start(
        ground: Ground<'_>,
        spec: &Value,
        image: &Image,
        values: &environment::Values<'_>,
    ) -> anyhow::Result<Self> {
        let name = text(&spec["name"]);
        let root = ground.folder.join("roots").join(name);
        if root.exists() {
            fs::remove_dir_all(&root)?;
        }
        images::copy(&image.root, &root)?;
        let launch = launch(ground, spec, image, values, &root)?;
        let user = (number(&launch["user"])?, number(&launch["group"])?);
        let file = ground.folder.join(format!("{name}.json"));
        fs::write(&file, launch.to_string())?;
        let launcher = ground.folder.join("launch.py");
        fs::write(&launcher, LAUNCHER)?;
        let mut command = Command::new(testkit::tools::python()?);
        command.arg(launcher).arg(file);
        let log = log(ground.folder, name);
        let process = ground.network.run(|| Process::spawn(name, command, log))?;
        Ok(Self { process, user })
    }

    /// Returns how it has ended, if it has.
    pub(super) fn ended(&self) -> anyhow::Result<Option<i32>> {
        let status = self.process.status()?;
        Ok(status.map(|status| status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or_default())))
    }

    /// Returns the process id of its first process, as others see it.
    pub(super) fn first_process(&self) -> anyhow::Result<u32> {
        let launcher = self.process.id();
        let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"))?;
        let child = children.split_whitespace().next().context("the container has not started yet")?;
        Ok(child.parse()?)
    }

    /// Tells it to end.
    pub(super) fn terminate(&self) {
        if matches!(self.ended(), Ok(None)) {
            send(self.process.id(), Signal::TERM);
        }
    }

    /// Runs a command inside, as the container's user, and returns whether it succeeded.
    pub(super) fn run(&self, command: &Value, limit: Duration) -> anyhow::Result<bool> {
        let (user, group) = self.user;
        let arguments = command.as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut enter = Command::new("timeout");
        enter.args(["--signal=KILL", &limit.as_secs_f32().to_string(), "nsenter"]);
        enter.args(["--target", &self.first_process()?.to_string()]);
        enter.args(["--mount", "--uts", "--ipc", "--net", "--pid", "--root", "--wd"]);
        enter.args(["--setuid", &user.to_string(), "--setgid", &group.to_string(), "--"]).args(arguments);
        let output = enter.output().context("cannot run nsenter (package util-linux)")?;
        Ok(output.status.success())
    }
}

/// Sends a signal to a process; one that has ended needs none.
pub(super) fn send(process: u32, signal: Signal) {
    if let Some(id) = i32::try_from(process).ok().and_then(Pid::from_raw) {
        let _ = kill_process(id, signal);
    }
}

/// Returns where a container's output is.
pub(super) fn log(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.log"))
}

fn number(value: &Value) -> anyhow::Result<u32> {
    value.as_u64().and_then(|number| u32::try_from(number).ok()).context("a user is a number")
}

fn launch(
    ground: Ground<'_>,
    spec: &Value,
    image: &Image,
    values: &environment::Values<'_>,
    root: &Path,
) -> anyhow::Result<Value> {
    let pod = &ground.pod["spec"];
    // The container's own settings win over the pod's, and those over the image's.
    let setting = |name: &str| {
        let own = &spec["securityContext"][name];
        if own.is_null() { pod["securityContext"][name].clone() } else { own.clone() }
    };
    let user = setting("runAsUser").as_u64().unwrap_or(image.user.0.into());
    let group = setting("runAsGroup").as_u64().unwrap_or(image.user.1.into());
    let is_root_refused = setting("runAsNonRoot").as_bool().unwrap_or_default();
    ensure!(user != 0 || !is_root_refused, "runAsNonRoot, but the user is root");
    let mut groups: Vec<u64> = list(&pod["securityContext"]["supplementalGroups"], Value::as_u64);
    groups.extend(pod["securityContext"]["fsGroup"].as_u64());
    let security = &spec["securityContext"];
    let mut mounts = ground.volumes.mounts(&spec["volumeMounts"])?;
    for name in ["resolv.conf", "hosts"] {
        let source = ground.folder.join(name);
        mounts.push(json!({ "source": source, "target": format!("/etc/{name}"), "read_only": false }));
    }
    // What is mounted inside of another volume comes after it.
    mounts.sort_by_key(|mount| text(&mount["target"]).len());
    let mut variables: BTreeMap<String, String> = image.environment.iter().cloned().collect();
    variables
        .entry("PATH".to_owned())
        .or_insert_with(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned());
    let own = values.of(spec)?;
    let words = |field: &str| list(&spec[field], |word| Some(environment::expand(word.as_str()?, &own)));
    let (command, arguments): (Vec<String>, Vec<String>) = (words("command"), words("args"));
    let mut command = if command.is_empty() { image.entrypoint.clone() } else { command };
    command.extend(arguments);
    variables.extend(own);
    Ok(json!({
        "root": root,
        "read_only": security["readOnlyRootFilesystem"].as_bool().unwrap_or_default(),
        "mounts": mounts,
        "hostname": ground.pod["metadata"]["name"],
        "directory": spec["workingDir"].as_str().unwrap_or(&image.directory),
        "user": user,
        "group": group,
        "groups": groups,
        "capabilities": capabilities(security)?,
        "no_new_privileges": security["allowPrivilegeEscalation"] == Value::Bool(false),
        "command": command,
        "environment": variables,
    }))
}

/// Returns the numbers of what the container may do, if its user is root.
fn capabilities(security: &Value) -> anyhow::Result<Vec<usize>> {
    if security["privileged"].as_bool().unwrap_or_default() {
        return Ok((0..64).collect());
    }
    let names = |field: &str| list(&security["capabilities"][field], |name| Some(name.as_str()?.to_owned()));
    let (added, dropped): (Vec<String>, Vec<String>) = (names("add"), names("drop"));
    let is_dropped = |name: &str| dropped.iter().any(|other| other == "ALL" || other == name);
    let kept = USUAL.into_iter().filter(|name| !is_dropped(name)).map(str::to_owned);
    let number = |name: String| match CAPABILITIES.iter().position(|other| *other == name) {
        Some(number) => Ok(number),
        None if name == "SETFCAP" => Ok(SETFCAP),
        None => bail!("the capability {name} is not known here"),
    };
    kept.chain(added).map(number).collect()
}

/// Returns the elements of a list that is there or is not.
pub(super) fn list<T>(value: &Value, read: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    value.as_array().into_iter().flatten().filter_map(read).collect()
}
