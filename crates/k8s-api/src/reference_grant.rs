//! ReferenceGrant of the Gateway API: what of a namespace others may refer to.

use crate::crd::column;
use crate::wire::{api_type, istio_kind};

istio_kind! {
    /// Lets objects of other namespaces refer to objects of its own.
    ReferenceGrant(ReferenceGrantSpec) {
        group: "gateway.networking.k8s.io",
        plural: "referencegrants",
        short_names: &["refgrant"],
        categories: &["gateway-api"],
        versions: &["v1beta1", "v1"],
        columns: &[column("Age", "date", ".metadata.creationTimestamp")],
        spec_required: false,
    }
}

api_type! {
    /// Who may refer to what.
    pub struct ReferenceGrantSpec {
        /// Who may: any of these.
        pub from: Vec<ReferenceGrantFrom>,
        /// To what: any of these.
        pub to: Vec<ReferenceGrantTo>,
    }

    /// Objects of a kind in a namespace.
    pub struct ReferenceGrantFrom {
        /// The API group; empty for Kubernetes' core.
        pub group: String,
        /// The kind.
        pub kind: String,
        /// The namespace.
        pub namespace: String,
    }

    /// Objects of a kind in the grant's namespace.
    pub struct ReferenceGrantTo {
        /// The API group; empty for Kubernetes' core.
        pub group: String,
        /// The kind.
        pub kind: String,
        /// The name; absent stands for all of the kind.
        pub name: Option<String>,
    }
}
