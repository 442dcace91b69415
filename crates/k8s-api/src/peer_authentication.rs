//! PeerAuthentication: whether inbound connections have to use mutual TLS.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::meta::LabelSelector;
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// What workloads demand of connections to them.
    PeerAuthentication(PeerAuthenticationSpec) {
        group: "security.istio.io",
        plural: "peerauthentications",
        short_names: &["pa"],
        categories: &["istio-io", "security-istio-io"],
        versions: &["v1", "v1beta1"],
        columns: &[
            column("Mode", "string", ".spec.mtls.mode"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec_required: false,
    }
}

api_type! {
    /// Mutual TLS settings of workloads, and of single ports.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
        "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ? self.selector.matchLabels : {}).size() > 0) : true",
        "portLevelMtls requires selector",
    )])))]
    pub struct PeerAuthenticationSpec {
        /// The setting for all ports; absent inherits from namespace or mesh.
        pub mtls: Option<MutualTls>,
        /// Settings by port of the workload, which win.
        #[schemars(schema_with = "port_level_mtls")]
        pub port_level_mtls: BTreeMap<String, MutualTls>,
        /// The workloads; absent means every one of the namespace, or of the mesh in the root namespace.
        pub selector: Option<LabelSelector>,
    }

    /// A mutual TLS setting.
    pub struct MutualTls {
        /// The mode; absent inherits.
        pub mode: Option<MutualTlsMode>,
    }
}

open_enum! {
    /// What is demanded of connections.
    pub enum MutualTlsMode {
        /// Inherited; permissive if nothing is set anywhere.
        Unset = "UNSET",
        /// Plaintext.
        Disable = "DISABLE",
        /// Mutual TLS or plaintext.
        Permissive = "PERMISSIVE",
        /// Mutual TLS.
        Strict = "STRICT",
    }
}

fn port_level_mtls(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "minProperties": 1,
        "additionalProperties": generator.subschema_for::<MutualTls>(),
        "x-kubernetes-validations": schema::cel(&[(
            "self.all(key, 0 < int(key) && int(key) <= 65535)",
            "port must be between 1-65535",
        )]),
    })
}
