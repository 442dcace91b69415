//! WasmPlugin and its successor TrafficExtension: filters that are programs.

use std::collections::BTreeMap;

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::Value;

use crate::crd::column;
use crate::meta::{LabelSelector, PolicyTargetReference};
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// A filter in WebAssembly.
    WasmPlugin(WasmPluginSpec) {
        group: "extensions.istio.io",
        plural: "wasmplugins",
        short_names: &[],
        categories: &["istio-io", "extensions-istio-io"],
        versions: &["v1alpha1"],
        columns: &[column("Age", "date", ".metadata.creationTimestamp")],
        spec_required: true,
    }
}

istio_kind! {
    /// A filter in WebAssembly or Lua.
    TrafficExtension(TrafficExtensionSpec) {
        group: "extensions.istio.io",
        plural: "trafficextensions",
        short_names: &[],
        categories: &["istio-io", "extensions-istio-io"],
        versions: &["v1alpha1"],
        columns: &[column("Age", "date", ".metadata.creationTimestamp")],
        spec_required: true,
    }
}

api_type! {
    /// A program and where it runs.
    #[schemars(extend("required" = ["url"], "x-kubernetes-validations" = schema::cel(&[schema::ONE_TARGET])))]
    pub struct WasmPluginSpec {
        /// What happens to traffic if the program fails.
        pub fail_strategy: Option<FailStrategy>,
        /// When the image is fetched again.
        pub image_pull_policy: Option<PullPolicy>,
        /// The Secret with the registry's credentials.
        #[schemars(extend("minLength" = 1, "maxLength" = 253))]
        pub image_pull_secret: String,
        /// The traffic; none means all.
        #[serde(rename = "match")]
        pub match_: Vec<TrafficSelector>,
        /// Where in the chain of filters it runs.
        pub phase: Option<PluginPhase>,
        /// What the program is told.
        #[schemars(schema_with = "schema::anything")]
        pub plugin_config: BTreeMap<String, Value>,
        /// The program's name.
        #[schemars(extend("minLength" = 1, "maxLength" = 256))]
        pub plugin_name: String,
        /// The order within a phase; the highest is first.
        #[schemars(schema_with = "schema::nullable_i32")]
        pub priority: Option<i32>,
        /// The workloads, by labels.
        pub selector: Option<LabelSelector>,
        /// The program's checksum.
        #[schemars(extend("pattern" = "(^$|^[a-f0-9]{64}$)"))]
        pub sha256: String,
        /// One target; `targetRefs` is the newer form.
        pub target_ref: Option<PolicyTargetReference>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
        /// Of which kind of filter the program is.
        #[serde(rename = "type")]
        pub type_: Option<PluginType>,
        /// Where the program comes from.
        #[schemars(schema_with = "url")]
        pub url: String,
        /// The key that signs the image.
        pub verification_key: String,
        /// The machine that the program runs in.
        pub vm_config: Option<VmConfig>,
    }

    /// A program and where it runs.
    #[schemars(
        extend("x-kubernetes-validations" = schema::cel(&[
            (
                "(has(self.selector) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
                "only one of targetRefs or selector can be set",
            ),
            ("has(self.wasm) != has(self.lua)", "exactly one of wasm or lua must be set"),
        ])),
        transform = schema::one_of(&["wasm", "lua"])
    )]
    pub struct TrafficExtensionSpec {
        /// A program in Lua.
        pub lua: Option<LuaConfig>,
        /// The traffic; none means all.
        #[serde(rename = "match")]
        pub match_: Vec<TrafficSelector>,
        /// Where in the chain of filters it runs.
        pub phase: Option<ExtensionPhase>,
        /// The order within a phase; the highest is first.
        #[schemars(schema_with = "schema::nullable_i32")]
        pub priority: Option<i32>,
        /// The workloads, by labels.
        pub selector: Option<LabelSelector>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
        /// A program in WebAssembly.
        pub wasm: Option<WasmConfig>,
    }

    /// A program in Lua.
    #[schemars(extend("required" = ["inlineCode"]))]
    pub struct LuaConfig {
        /// The program.
        #[schemars(extend("minLength" = 1, "maxLength" = 65536))]
        pub inline_code: String,
    }

    /// A program in WebAssembly.
    #[schemars(extend("required" = ["url"]))]
    pub struct WasmConfig {
        /// What happens to traffic if the program fails.
        pub fail_strategy: Option<FailStrategy>,
        /// When the image is fetched again.
        pub image_pull_policy: Option<PullPolicy>,
        /// The Secret with the registry's credentials.
        #[schemars(extend("minLength" = 1, "maxLength" = 253))]
        pub image_pull_secret: String,
        /// What the program is told.
        #[schemars(schema_with = "schema::anything")]
        pub plugin_config: BTreeMap<String, Value>,
        /// The program's name.
        #[schemars(extend("minLength" = 1, "maxLength" = 256))]
        pub plugin_name: String,
        /// The program's checksum.
        #[schemars(extend("pattern" = "(^$|^[a-f0-9]{64}$)"))]
        pub sha256: String,
        /// Of which kind of filter the program is.
        #[serde(rename = "type")]
        pub type_: Option<PluginType>,
        /// Where the program comes from.
        #[schemars(schema_with = "url")]
        pub url: String,
        /// The key that signs the image.
        pub verification_key: String,
        /// The machine that the program runs in.
        pub vm_config: Option<VmConfig>,
    }

    /// Traffic that a filter sees.
    pub struct TrafficSelector {
        /// Which side of it; absent means both.
        pub mode: Option<TrafficMode>,
        /// Its ports; none means all.
        #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["number"]))]
        pub ports: Vec<PortSelector>,
    }

    /// A port.
    #[schemars(extend("required" = ["number"]))]
    pub struct PortSelector {
        /// Its number.
        #[schemars(schema_with = "port_number")]
        pub number: Option<u32>,
    }

    /// The machine that a program runs in.
    pub struct VmConfig {
        /// Its environment.
        #[schemars(extend(
            "maxItems" = 256,
            "x-kubernetes-list-type" = "map",
            "x-kubernetes-list-map-keys" = ["name"]
        ))]
        pub env: Vec<PluginVariable>,
    }

    /// A variable.
    #[schemars(extend("required" = ["name"], "x-kubernetes-validations" = schema::cel(&[(
        "(has(self.valueFrom) ? self.valueFrom : \"\") != \"HOST\" || !has(self.value)",
        "value may only be set when valueFrom is INLINE",
    )])))]
    pub struct PluginVariable {
        /// Its name.
        #[schemars(extend("minLength" = 1, "maxLength" = 256))]
        pub name: String,
        /// Its value.
        #[schemars(extend("maxLength" = 2048))]
        pub value: String,
        /// Where its value comes from.
        pub value_from: Option<VariableSource>,
    }
}

open_enum! {
    /// What happens to traffic if a program fails.
    pub enum FailStrategy {
        /// It is refused.
        FailClose = "FAIL_CLOSE",
        /// It passes.
        FailOpen = "FAIL_OPEN",
        /// The program is started anew.
        FailReload = "FAIL_RELOAD",
    }

    /// When an image is fetched again.
    pub enum PullPolicy {
        /// As Kubernetes does.
        Unspecified = "UNSPECIFIED_POLICY",
        /// If it is not there.
        IfNotPresent = "IfNotPresent",
        /// Always.
        Always = "Always",
    }

    /// Where in the chain of filters a plugin runs.
    pub enum PluginPhase {
        /// At the end, before the router.
        Unspecified = "UNSPECIFIED_PHASE",
        /// Before authentication.
        Authn = "AUTHN",
        /// Before authorization.
        Authz = "AUTHZ",
        /// Before statistics.
        Stats = "STATS",
    }

    /// Where in the chain of filters an extension runs.
    pub enum ExtensionPhase {
        /// At the end, before the router.
        Unspecified = "UNSPECIFIED",
        /// Before authentication.
        Authn = "AUTHN",
        /// Before authorization.
        Authz = "AUTHZ",
        /// Before statistics.
        Stats = "STATS",
    }

    /// Of which kind of filter a program is.
    pub enum PluginType {
        /// As `HTTP`.
        Unspecified = "UNSPECIFIED_PLUGIN_TYPE",
        /// Of HTTP.
        Http = "HTTP",
        /// Of the network.
        Network = "NETWORK",
    }

    /// Which side of traffic.
    pub enum TrafficMode {
        /// As `CLIENT_AND_SERVER`.
        Undefined = "UNDEFINED",
        /// The client's.
        Client = "CLIENT",
        /// The server's.
        Server = "SERVER",
        /// Both.
        ClientAndServer = "CLIENT_AND_SERVER",
    }

    /// Where a variable's value comes from.
    pub enum VariableSource {
        /// It is written here.
        Inline = "INLINE",
        /// The proxy's environment.
        Host = "HOST",
    }
}

fn url(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "x-kubernetes-validations": schema::cel(&[schema::PLUGIN_URL]),
    })
}

fn port_number(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "integer", "minimum": 1, "maximum": 65535 })
}
