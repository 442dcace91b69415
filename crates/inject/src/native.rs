//! Whether the proxy can be a native sidecar: an init container that runs on.

/// When native sidecars are used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum NativeSidecars {
    /// If every kubelet that may run the pod is new enough.
    #[default]
    Auto,
    /// Always.
    Enabled,
    /// Never.
    Disabled,
}

/// The first minor version of Kubernetes in which native sidecars are a stable feature.
const STABLE: u32 = 33;

/// Returns whether native sidecars are used where the kubelets have these versions: of the pod's own node if it is
/// known, else of all nodes. Where nothing is known, the older form is safe everywhere.
pub fn supported<'a>(setting: NativeSidecars, kubelets: impl IntoIterator<Item = &'a str>) -> bool {
    match setting {
        NativeSidecars::Enabled => true,
        NativeSidecars::Disabled => false,
        NativeSidecars::Auto => {
            let mut kubelets = kubelets.into_iter().peekable();
            kubelets.peek().is_some() && kubelets.all(is_new_enough)
        }
    }
}

/// Reads versions such as `v1.33.0`, `1.34` and `v1.33.2-gke.100`.
fn is_new_enough(version: &str) -> bool {
    let digits = |part: &str| {
        let end = part.find(|c: char| !c.is_ascii_digit()).unwrap_or(part.len());
        part[..end].parse::<u32>().ok()
    };
    let mut parts = version.trim().trim_start_matches('v').split('.');
    let (major, minor) = (parts.next().and_then(digits), parts.next().and_then(digits));
    major.zip(minor).is_some_and(|version| version >= (1, STABLE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_old_kubelet_decides() {
        let auto = |versions: &[&str]| supported(NativeSidecars::Auto, versions.iter().copied());
        assert!(auto(&["v1.33.0", "1.34", "v1.35.1-eks-1", "v1.33+"]));
        assert!(!auto(&["v1.33.0", "v1.32.9"]));
        assert!(!auto(&["v1.33.0", ""]));
        assert!(!auto(&[]));
    }

    #[test]
    fn a_setting_is_stronger_than_versions() {
        assert!(supported(NativeSidecars::Enabled, ["v1.28.0"]));
        assert!(!supported(NativeSidecars::Disabled, ["v1.34.0"]));
    }
}
