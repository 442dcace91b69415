//! ProxyConfig: settings of the proxies of some workloads, as an object.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::meta::LabelSelector;
use crate::wire::{api_type, istio_kind};

istio_kind! {
    /// Settings of some proxies. They need a restart of the pods.
    ProxyConfig(ProxyConfigSpec) {
        group: "networking.istio.io",
        plural: "proxyconfigs",
        short_names: &[],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1beta1"],
        columns: &[],
        spec_required: false,
    }
}

api_type! {
    /// Settings of some proxies.
    pub struct ProxyConfigSpec {
        /// The number of worker threads; 0 means one for each processor.
        #[schemars(schema_with = "concurrency")]
        pub concurrency: Option<i32>,
        /// Variables of the environment.
        #[schemars(schema_with = "variables")]
        pub environment_variables: BTreeMap<String, String>,
        /// The image.
        pub image: Option<ProxyImage>,
        /// The workloads; absent means every one of the namespace, or of the mesh in the root namespace.
        pub selector: Option<LabelSelector>,
    }

    /// An image.
    pub struct ProxyImage {
        /// Its variant: `default`, `debug` or `distroless`.
        pub image_type: String,
    }
}

fn concurrency(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "format": "int32", "minimum": 0, "nullable": true })
}

fn variables(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": { "type": "string", "maxLength": 2048 } })
}
