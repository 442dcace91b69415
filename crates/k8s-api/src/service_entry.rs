//! ServiceEntry: a service that Kubernetes does not know of.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::meta::WorkloadSelector;
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};
use crate::workload_entry::WorkloadEntrySpec;

istio_kind! {
    /// Adds a service to the mesh's registry.
    ServiceEntry(ServiceEntrySpec) {
        group: "networking.istio.io",
        plural: "serviceentries",
        short_names: &["se"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[
            column("Hosts", "string", ".spec.hosts"),
            column("Location", "string", ".spec.location"),
            column("Resolution", "string", ".spec.resolution"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec_required: true,
    }
}

api_type! {
    /// A service by hosts, ports and endpoints.
    #[schemars(extend(
        "required" = ["hosts"],
        "x-kubernetes-validations" = schema::cel(&[
            (
                "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1",
                "only one of WorkloadSelector or Endpoints can be set",
            ),
            (
                "!((has(self.addresses) ? self.addresses : []).exists(k, k.contains(\"/\")) && !((has(self.resolution) ? self.resolution : \"NONE\") in [\"STATIC\", \"NONE\"]))",
                "CIDR addresses are allowed only for NONE/STATIC resolution types",
            ),
            (
                "((has(self.resolution) ? self.resolution : \"NONE\") == \"NONE\") ? !has(self.endpoints) : true",
                "NONE mode cannot set endpoints",
            ),
            (
                "((has(self.resolution) ? self.resolution : \"\") == \"DNS_ROUND_ROBIN\") ? ((has(self.endpoints) ? self.endpoints : []).size() <= 1) : true",
                "DNS_ROUND_ROBIN mode cannot have multiple endpoints",
            ),
        ]),
    ))]
    pub struct ServiceEntrySpec {
        /// Virtual addresses of the service: IPs or networks.
        #[schemars(schema_with = "addresses")]
        pub addresses: Vec<String>,
        /// The endpoints.
        #[schemars(extend("maxItems" = 4096))]
        pub endpoints: Vec<WorkloadEntrySpec>,
        /// Namespaces that see this object: `*` all, `.` its own, or names. Empty means the mesh's default.
        pub export_to: Vec<String>,
        /// DNS names of the service, with or without a leading wildcard.
        #[schemars(schema_with = "hosts")]
        pub hosts: Vec<String>,
        /// Whether the service is a part of the mesh.
        pub location: Option<Location>,
        /// The ports.
        #[schemars(extend(
            "maxItems" = 256,
            "x-kubernetes-list-map-keys" = ["name"],
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-validations" = schema::cel(&[(
                "self.all(l1, self.exists_one(l2, l1.number == l2.number))",
                "port number cannot be duplicated",
            )]),
        ))]
        pub ports: Vec<ServicePort>,
        /// How endpoints are found.
        pub resolution: Option<Resolution>,
        /// Names of which the server's certificate must carry one.
        pub subject_alt_names: Vec<String>,
        /// Selects WorkloadEntries and Pods as endpoints.
        pub workload_selector: Option<WorkloadSelector>,
    }

    /// A port of the service.
    #[schemars(extend("required" = ["number", "name"]))]
    pub struct ServicePort {
        /// A label for the port.
        #[schemars(extend("maxLength" = 256))]
        pub name: String,
        /// The number.
        #[schemars(schema_with = "schema::port")]
        pub number: Option<u32>,
        /// HTTP, HTTPS, GRPC, HTTP2, MONGO, TCP or TLS; empty means that the proxy finds out.
        #[schemars(extend("maxLength" = 256))]
        pub protocol: String,
        /// The port of the endpoints; absent means the same.
        #[schemars(schema_with = "schema::port")]
        pub target_port: Option<u32>,
    }
}

open_enum! {
    /// Whether a service is a part of the mesh.
    pub enum Location {
        /// It is not: its endpoints have no mesh certificates.
        MeshExternal = "MESH_EXTERNAL",
        /// It is.
        MeshInternal = "MESH_INTERNAL",
    }

    /// How endpoints are found.
    pub enum Resolution {
        /// Connections go to the address that the caller asked for.
        None = "NONE",
        /// The endpoints' addresses are used.
        Static = "STATIC",
        /// Names are resolved by the proxy; every address is used.
        Dns = "DNS",
        /// Names are resolved by the proxy; one address is used at a time.
        DnsRoundRobin = "DNS_ROUND_ROBIN",
        /// The name is taken from the request and resolved by the proxy.
        DynamicDns = "DYNAMIC_DNS",
    }
}

fn addresses(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 256, "items": { "type": "string", "maxLength": 64 } })
}

fn hosts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "minItems": 1,
        "maxItems": 256,
        "items": {
            "type": "string",
            "x-kubernetes-validations": schema::cel(&[("self != \"*\"", "hostname cannot be wildcard")]),
        },
    })
}
