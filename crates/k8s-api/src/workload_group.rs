//! WorkloadGroup: what virtual machines that register themselves have in common.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::schema;
use crate::wire::{api_type, istio_kind};
use crate::workload_entry;

istio_kind! {
    /// What virtual machines that register themselves have in common.
    WorkloadGroup(WorkloadGroupSpec) {
        group: "networking.istio.io",
        plural: "workloadgroups",
        short_names: &["wg"],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[column("Age", "date", ".metadata.creationTimestamp")],
        spec_required: true,
    }
}

api_type! {
    /// What the machines have in common.
    #[schemars(extend("required" = ["template"]))]
    pub struct WorkloadGroupSpec {
        /// Metadata of the WorkloadEntry of each.
        pub metadata: Option<WorkloadGroupMetadata>,
        /// How the health of each is probed.
        pub probe: Option<ReadinessProbe>,
        /// The WorkloadEntry of each, but for the address.
        pub template: Option<WorkloadTemplate>,
    }

    /// Metadata of a WorkloadEntry.
    pub struct WorkloadGroupMetadata {
        /// Annotations.
        #[schemars(extend("maxProperties" = 256))]
        pub annotations: BTreeMap<String, String>,
        /// Labels.
        #[schemars(extend("maxProperties" = 256))]
        pub labels: BTreeMap<String, String>,
    }

    /// The WorkloadEntry of a machine, whose address may still be unknown.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
        "(has(self.address) ? self.address : \"\").startsWith(\"unix://\") ? !has(self.ports) : true",
        "UDS may not include ports",
    )])))]
    pub struct WorkloadTemplate {
        /// The address, which registration fills in.
        #[schemars(schema_with = "workload_entry::address")]
        pub address: String,
        /// Labels, by which services and policies select it.
        #[schemars(extend("maxProperties" = 256))]
        pub labels: BTreeMap<String, String>,
        /// `region/zone/subzone`.
        #[schemars(extend("maxLength" = 2048))]
        pub locality: String,
        /// The network.
        #[schemars(extend("maxLength" = 2048))]
        pub network: String,
        /// Port numbers by the service's port names.
        #[schemars(schema_with = "workload_entry::ports")]
        pub ports: BTreeMap<String, u32>,
        /// The service account of its identity.
        #[schemars(extend("maxLength" = 253))]
        pub service_account: String,
        /// Its share of the traffic, relative to the other endpoints.
        pub weight: Option<u32>,
    }

    /// How health is probed.
    #[schemars(transform = schema::one_of(&["httpGet", "tcpSocket", "exec", "grpc"]))]
    pub struct ReadinessProbe {
        /// A program that must succeed.
        pub exec: Option<ExecHealthCheck>,
        /// How many failures in a row make it unhealthy.
        #[schemars(schema_with = "schema::natural_i32")]
        pub failure_threshold: Option<i32>,
        /// gRPC's health protocol.
        pub grpc: Option<GrpcHealthCheck>,
        /// A request that must succeed.
        pub http_get: Option<HttpHealthCheck>,
        /// How long to wait before the first probe.
        #[schemars(schema_with = "schema::natural_i32")]
        pub initial_delay_seconds: Option<i32>,
        /// How often.
        #[schemars(schema_with = "schema::natural_i32")]
        pub period_seconds: Option<i32>,
        /// How many successes in a row make it healthy.
        #[schemars(schema_with = "schema::natural_i32")]
        pub success_threshold: Option<i32>,
        /// A connection that must succeed.
        pub tcp_socket: Option<TcpHealthCheck>,
        /// How long an answer may take.
        #[schemars(schema_with = "schema::natural_i32")]
        pub timeout_seconds: Option<i32>,
    }

    /// A program that must succeed.
    #[schemars(extend("required" = ["command"]))]
    pub struct ExecHealthCheck {
        /// The program and its arguments.
        #[schemars(schema_with = "schema::texts")]
        pub command: Vec<String>,
    }

    /// gRPC's health protocol.
    pub struct GrpcHealthCheck {
        /// The port.
        #[schemars(schema_with = "schema::port")]
        pub port: Option<u32>,
        /// The service that is asked for.
        pub service: String,
    }

    /// A request that must succeed.
    #[schemars(extend("required" = ["port"]))]
    pub struct HttpHealthCheck {
        /// Another host than the machine.
        pub host: String,
        /// Further headers.
        pub http_headers: Vec<HealthCheckHeader>,
        /// The path.
        pub path: String,
        /// The port.
        #[schemars(schema_with = "schema::port")]
        pub port: Option<u32>,
        /// `HTTP` or `HTTPS`.
        #[schemars(schema_with = "scheme")]
        pub scheme: String,
    }

    /// A header.
    pub struct HealthCheckHeader {
        /// Its name.
        #[schemars(extend("pattern" = "^[-_A-Za-z0-9]+$"))]
        pub name: String,
        /// Its value.
        pub value: String,
    }

    /// A connection that must succeed.
    #[schemars(extend("required" = ["port"]))]
    pub struct TcpHealthCheck {
        /// Another host than the machine.
        pub host: String,
        /// The port.
        #[schemars(schema_with = "schema::port")]
        pub port: Option<u32>,
    }
}

fn scheme(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "x-kubernetes-validations": schema::cel(&[(
            "self in [\"\", \"HTTP\", \"HTTPS\"]",
            "scheme must be one of [HTTP, HTTPS]",
        )]),
    })
}
