//! WorkloadEntry: one endpoint outside Kubernetes, such as a virtual machine.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::schema;
use crate::wire::{api_type, istio_kind};

istio_kind! {
    /// One workload that is not a Pod.
    WorkloadEntry(WorkloadEntrySpec) {
        group: "networking.istio.io",
        plural: "workloadentries",
        short_names: &["we"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[
            column("Age", "date", ".metadata.creationTimestamp"),
            column("Address", "string", ".spec.address"),
        ],
        spec_required: true,
    }
}

api_type! {
    /// Where a workload is and what it is called.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[
        ("has(self.address) || has(self.network)", "Address is required"),
        (
            "(has(self.address) ? self.address : \"\").startsWith(\"unix://\") ? !has(self.ports) : true",
            "UDS may not include ports",
        ),
    ])))]
    pub struct WorkloadEntrySpec {
        /// An IP address, a DNS name (if the service resolves names) or `unix://` and a socket path.
        #[schemars(schema_with = "address")]
        pub address: String,
        /// Labels, by which services and policies select it.
        #[schemars(extend("maxProperties" = 256))]
        pub labels: BTreeMap<String, String>,
        /// `region/zone/subzone`.
        #[schemars(extend("maxLength" = 2048))]
        pub locality: String,
        /// The network; endpoints of another network are reached through its gateway.
        #[schemars(extend("maxLength" = 2048))]
        pub network: String,
        /// Port numbers by the service's port names.
        #[schemars(schema_with = "ports")]
        pub ports: BTreeMap<String, u32>,
        /// The service account of its identity.
        #[schemars(extend("maxLength" = 253))]
        pub service_account: String,
        /// Its share of the traffic, relative to the other endpoints.
        pub weight: Option<u32>,
    }
}

pub(crate) fn address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 256,
        "x-kubernetes-validations": schema::cel(&[
            (
                "self.startsWith(\"unix://\") ? (self.substring(7, 8) == \"/\" || self.substring(7, 8) == \"@\") : true",
                "UDS must be an absolute path or abstract socket",
            ),
            ("self.startsWith(\"unix://\") ? !self.endsWith(\"/\") : true", "UDS may not be a dir"),
        ]),
    })
}

pub(crate) fn ports(generator: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": schema::port(generator),
        "x-kubernetes-validations": schema::cel(&[(
            "self.all(key, size(key) < 63 && key.matches(\"^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$\"))",
            "port name must be valid",
        )]),
    })
}
