//! Roots: where they come from, and telling the control plane when Envoy has taken new ones.

pub mod stream;
mod subscription;

use ca::TrustBundle;
pub use subscription::{Action, Subscription};

/// Where roots come from.
///
/// The control plane sends them on the agent's own stream, and the authority with every certificate. The stream is
/// newer, and two authorities may disagree for a while: as long as it lives, it alone counts.
#[derive(Debug, Default)]
pub struct Sources {
    mounted: Option<TrustBundle>,
    workload: Option<TrustBundle>,
    stream_lives: bool,
    mounted_only: bool,
}

impl Sources {
    /// Returns no roots. With `mounted_only`, nobody but the mounted file says who the control plane is.
    pub fn new(mounted_only: bool) -> Self {
        Self { mounted_only, ..Self::default() }
    }

    /// Takes the roots that came with a certificate.
    pub fn set_authority(&mut self, roots: TrustBundle) {
        if !self.stream_lives {
            self.workload = Some(roots);
        }
    }

    /// Takes the roots that came on the stream.
    pub fn set_stream(&mut self, roots: TrustBundle) {
        self.stream_lives = true;
        self.workload = Some(roots);
    }

    /// Notes that the stream has ended. Its roots stay until the authority sends others.
    pub fn stream_ended(&mut self) {
        self.stream_lives = false;
    }

    /// Takes the mounted roots of the control plane.
    pub fn set_mounted(&mut self, roots: TrustBundle) {
        self.mounted = Some(roots);
    }

    /// Returns the roots of workload certificates.
    pub fn workload(&self) -> Option<&TrustBundle> {
        self.workload.as_ref()
    }

    /// Returns the roots of the control plane: the mounted ones, and those of workloads, which are here earlier when
    /// roots are replaced.
    pub fn control_plane(&self) -> Option<TrustBundle> {
        match (&self.mounted, self.workload.as_ref().filter(|_| !self.mounted_only)) {
            (Some(mounted), Some(workload)) => Some(mounted.union(workload)),
            (Some(roots), None) | (None, Some(roots)) => Some(roots.clone()),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::rig::pki::Authority;

    fn bundle(name: &str) -> TrustBundle {
        TrustBundle::from_pem(Authority::new(name).certificate_pem().as_bytes()).unwrap()
    }

    fn names(bundle: Option<&TrustBundle>) -> Vec<String> {
        bundle.map_or_else(Vec::new, |bundle| bundle.iter().map(|root| root.name().to_owned()).collect())
    }

    #[test]
    fn the_stream_counts_while_it_lives() {
        let mut sources = Sources::new(false);
        sources.set_authority(bundle("a"));
        sources.set_stream(bundle("b"));
        sources.set_authority(bundle("c"));
        assert_eq!(names(sources.workload()), ["CN=b"]);
        sources.stream_ended();
        assert_eq!(names(sources.workload()), ["CN=b"], "nothing is taken away");
        sources.set_authority(bundle("d"));
        assert_eq!(names(sources.workload()), ["CN=d"]);
    }

    #[test]
    fn the_control_plane_is_known_by_mounted_roots_and_those_of_workloads() {
        let mut sources = Sources::new(false);
        assert!(sources.control_plane().is_none());
        sources.set_mounted(bundle("mounted"));
        sources.set_authority(bundle("workload"));
        assert_eq!(names(sources.control_plane().as_ref()), ["CN=mounted", "CN=workload"]);

        let mut strict = Sources::new(true);
        strict.set_authority(bundle("workload"));
        assert!(strict.control_plane().is_none());
        strict.set_mounted(bundle("mounted"));
        assert_eq!(names(strict.control_plane().as_ref()), ["CN=mounted"]);
    }
}
