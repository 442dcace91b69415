//! Which real parts the tests run against, each pinned to one version, and where they lie.
//!
//! `cargo xtask tools` installs every [`Tool`] under [`cache_dir`]; tests ask [`Tool::find`] and fail with the
//! command that installs what is missing.
//!
//! **Invariant:** depends on nothing, so that the chores in `xtask` build in seconds and share one table with the
//! tests. It finds tools; it never installs or starts one.

use std::env;
use std::fmt;
use std::path::{Path, PathBuf};

/// What the Python environment holds, one pinned requirement a line.
pub const PYTHON_REQUIREMENTS: &str = include_str!("../../../tests/tools/python/requirements.txt");

/// A real part that tests run against.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Tool {
    /// The stock Envoy proxy.
    Envoy,
    /// A Python interpreter whose environment has gRPC and what the comparison scripts import.
    Python,
    /// Kubernetes' storage.
    Etcd,
    /// The Kubernetes API server.
    KubeApiserver,
    /// Makes Pods of Deployments, EndpointSlices of Services, and collects garbage.
    KubeControllerManager,
    /// The Kubernetes command line.
    Kubectl,
    /// The chart installer.
    Helm,
    /// Checks licences, bans and sources of the dependencies.
    CargoDeny,
}

impl Tool {
    /// Every tool, in the order in which they are installed.
    pub const ALL: [Self; 8] = [
        Self::Python,
        Self::Envoy,
        Self::Etcd,
        Self::KubeApiserver,
        Self::KubeControllerManager,
        Self::Kubectl,
        Self::Helm,
        Self::CargoDeny,
    ];

    /// Returns the name of the tool, which is also that of its executable.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Envoy => "envoy",
            Self::Python => "python",
            Self::Etcd => "etcd",
            Self::KubeApiserver => "kube-apiserver",
            Self::KubeControllerManager => "kube-controller-manager",
            Self::Kubectl => "kubectl",
            Self::Helm => "helm",
            Self::CargoDeny => "cargo-deny",
        }
    }

    /// Returns the pinned version. That of [`Tool::Python`] is the version of `grpcio` in its environment.
    pub const fn version(self) -> &'static str {
        match self {
            Self::Envoy => "1.40.0",
            Self::Python => "1.85.0",
            Self::Etcd => "3.6.8",
            Self::KubeApiserver | Self::KubeControllerManager | Self::Kubectl => "1.36.1",
            Self::Helm => "4.2.0",
            Self::CargoDeny => "0.20.2",
        }
    }

    /// Returns the name of the folder below [`cache_dir`] that holds this version of the tool and nothing else.
    pub fn folder(self) -> String {
        match self {
            // Any change of a requirement is another environment.
            Self::Python => format!("python-{:016x}", fnv1a(PYTHON_REQUIREMENTS.as_bytes())),
            _ => format!("{}-{}", self.name(), self.version()),
        }
    }

    /// Returns where the executable lies inside an installation folder.
    pub fn executable_in(self, folder: &Path) -> PathBuf {
        match self {
            Self::Envoy => folder.join("envoy/_bin/envoy"),
            _ => folder.join("bin").join(self.name()),
        }
    }

    /// Returns the executable that `KUBEBUILDER_ASSETS` names for this tool, if the variable is set and the tool is
    /// one that such a folder holds. Whether the file exists is not checked.
    pub fn in_kubebuilder_assets(self) -> Option<PathBuf> {
        if !matches!(self, Self::Etcd | Self::KubeApiserver | Self::Kubectl) {
            return None;
        }
        let assets = env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty())?;
        Some(PathBuf::from(assets).join(self.name()))
    }

    /// Returns where the executable is expected, installed or not.
    pub fn path(self) -> Result<PathBuf, MissingTool> {
        if let Some(asset) = self.in_kubebuilder_assets() {
            return Ok(asset);
        }
        let cache = cache_dir().ok_or(MissingTool { tool: self, looked_at: None })?;
        Ok(self.executable_in(&cache.join(self.folder())))
    }

    /// Returns the executable, or an error that names the command which installs it.
    pub fn find(self) -> Result<PathBuf, MissingTool> {
        let path = self.path()?;
        if path.is_file() { Ok(path) } else { Err(MissingTool { tool: self, looked_at: Some(path) }) }
    }
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A tool is not where it should be. Displays what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTool {
    /// The tool that was looked for.
    pub tool: Tool,
    /// The file that does not exist; `None` if the cache folder is unknown.
    pub looked_at: Option<PathBuf>,
}

impl fmt::Display for MissingTool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tool, looked_at } = self;
        let Some(path) = looked_at else {
            return write!(f, "{tool}: the cache folder is unknown: set HOME or XDG_CACHE_HOME");
        };
        let path = path.display();
        if tool.in_kubebuilder_assets().is_some() {
            return write!(
                f,
                "{tool} is not at {path}: correct KUBEBUILDER_ASSETS, or unset it and run `cargo xtask tools`"
            );
        }
        write!(f, "{tool} {} is not at {path}: run `cargo xtask tools`", tool.version())
    }
}

impl std::error::Error for MissingTool {}

/// Returns the folder that all tools are installed in: `$XDG_CACHE_HOME/weft`, by default `~/.cache/weft`.
pub fn cache_dir() -> Option<PathBuf> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")))?;
    Some(base.join("weft"))
}

/// 64-bit FNV-1a: small, stable across platforms and releases, and not used against adversaries.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_distinct() {
        let mut folders: Vec<String> = Tool::ALL.iter().map(|tool| tool.folder()).collect();
        folders.sort();
        folders.dedup();
        assert_eq!(folders.len(), Tool::ALL.len());
    }

    #[test]
    fn go_modules_build_the_pinned_versions() {
        for (tool, module, go_mod) in [
            (Tool::Etcd, "go.etcd.io/etcd/server/v3", include_str!("../../../tests/tools/etcd/go.mod")),
            (Tool::Helm, "helm.sh/helm/v4", include_str!("../../../tests/tools/helm/go.mod")),
            (Tool::Kubectl, "k8s.io/kubernetes", include_str!("../../../tests/tools/kubernetes/go.mod")),
        ] {
            let wanted = format!("{module} v{}", tool.version());
            let required =
                go_mod.lines().any(|line| line.trim_start_matches("require").trim().starts_with(&wanted));
            assert!(required, "go.mod of {tool} does not require {wanted}");
        }
    }

    #[test]
    fn python_environment_has_the_pinned_grpcio() {
        let wanted = format!("grpcio=={}", Tool::Python.version());
        assert!(PYTHON_REQUIREMENTS.lines().any(|line| line == wanted), "no line {wanted}");
    }

    #[test]
    fn a_missing_tool_names_the_command_that_installs_it() {
        let missing = MissingTool { tool: Tool::Envoy, looked_at: Some(PathBuf::from("/nowhere/envoy")) };
        assert_eq!(missing.to_string(), "envoy 1.40.0 is not at /nowhere/envoy: run `cargo xtask tools`");
    }
}
