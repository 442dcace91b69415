//! EnvoyFilter: changes to what Envoy gets.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::meta::{PolicyTargetReference, WorkloadSelector};
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Changes what Envoys get.
    EnvoyFilter(EnvoyFilterSpec) {
        group: "networking.istio.io",
        plural: "envoyfilters",
        short_names: &[],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1alpha3"],
        columns: &[],
        spec_required: false,
    }
}

api_type! {
    /// What is changed.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
        "(has(self.workloadSelector) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
        "only one of targetRefs or workloadSelector can be set",
    )])))]
    pub struct EnvoyFilterSpec {
        /// The changes, in order.
        pub config_patches: Vec<EnvoyConfigObjectPatch>,
        /// The order among objects; the lowest is first.
        pub priority: Option<i32>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
        /// The workloads; absent means every one of the namespace.
        pub workload_selector: Option<WorkloadSelector>,
    }

    /// One change.
    pub struct EnvoyConfigObjectPatch {
        /// What is changed.
        pub apply_to: Option<ApplyTo>,
        /// Which one of these.
        #[serde(rename = "match")]
        pub match_: Option<EnvoyConfigObjectMatch>,
        /// How.
        pub patch: Option<Patch>,
    }

    /// Which one is changed.
    #[schemars(
        extend("x-kubernetes-validations" = schema::cel(&[(
            "has(self.context) ? ((self.context == \"WAYPOINT\") ? has(self.waypoint) : !has(self.waypoint)) : !has(self.waypoint)",
            "only support waypointMatch when context is WAYPOINT",
        )])),
        transform = schema::one_of(&["listener", "routeConfiguration", "cluster", "waypoint"])
    )]
    pub struct EnvoyConfigObjectMatch {
        /// Clusters.
        pub cluster: Option<ClusterMatch>,
        /// In which proxies, and for which direction.
        pub context: Option<PatchContext>,
        /// Listeners.
        pub listener: Option<ListenerMatch>,
        /// Properties of the proxy.
        pub proxy: Option<ProxyMatch>,
        /// Routes.
        pub route_configuration: Option<RouteConfigurationMatch>,
        /// Parts of a waypoint.
        pub waypoint: Option<WaypointMatch>,
    }

    /// Properties of a proxy.
    pub struct ProxyMatch {
        /// Its metadata.
        pub metadata: BTreeMap<String, String>,
        /// Its version, as a regular expression.
        pub proxy_version: String,
    }

    /// A cluster.
    pub struct ClusterMatch {
        /// Its name.
        pub name: String,
        /// The port of its service.
        pub port_number: Option<u32>,
        /// Its service.
        pub service: String,
        /// Its subset.
        pub subset: String,
    }

    /// A route configuration.
    pub struct RouteConfigurationMatch {
        /// The Gateway, as `namespace/name`.
        pub gateway: String,
        /// Its name.
        pub name: String,
        /// The name of the port.
        pub port_name: String,
        /// The number of the port.
        pub port_number: Option<u32>,
        /// A virtual host of it.
        pub vhost: Option<VirtualHostMatch>,
    }

    /// A virtual host.
    pub struct VirtualHostMatch {
        /// A domain of it.
        pub domain_name: String,
        /// Its name.
        pub name: String,
        /// A route of it.
        pub route: Option<RouteMatch>,
    }

    /// A route.
    pub struct RouteMatch {
        /// What it does.
        pub action: Option<RouteMatchAction>,
        /// Its name.
        pub name: String,
    }

    /// A listener.
    pub struct ListenerMatch {
        /// A filter chain of it.
        pub filter_chain: Option<FilterChainMatch>,
        /// A listener filter of it.
        pub listener_filter: String,
        /// Its name.
        pub name: String,
        /// The name of its port.
        pub port_name: String,
        /// The number of its port.
        pub port_number: Option<u32>,
    }

    /// A filter chain.
    pub struct FilterChainMatch {
        /// Protocols that it matches.
        pub application_protocols: String,
        /// The port that it matches.
        pub destination_port: Option<u32>,
        /// A filter of it.
        pub filter: Option<FilterMatch>,
        /// Its name.
        pub name: String,
        /// The server name that it matches.
        pub sni: String,
        /// The transport that it matches.
        pub transport_protocol: String,
        /// The name of its transport socket.
        pub transport_socket: String,
    }

    /// A filter of the network.
    pub struct FilterMatch {
        /// Its name.
        pub name: String,
        /// A filter of HTTP within it.
        pub sub_filter: Option<SubFilterMatch>,
    }

    /// A filter of HTTP.
    pub struct SubFilterMatch {
        /// Its name.
        pub name: String,
    }

    /// A part of a waypoint.
    pub struct WaypointMatch {
        /// A filter.
        pub filter: Option<FilterMatch>,
        /// The port of its service.
        #[schemars(schema_with = "schema::port")]
        pub port_number: Option<u32>,
        /// A route.
        pub route: Option<WaypointRouteMatch>,
    }

    /// A route of a waypoint.
    pub struct WaypointRouteMatch {
        /// Its name.
        pub name: String,
    }

    /// How something is changed.
    pub struct Patch {
        /// Where in the chain of filters a new one belongs.
        pub filter_class: Option<FilterClass>,
        /// What is done.
        pub operation: Option<PatchOperation>,
        /// With what: a message of Envoy's.
        #[schemars(schema_with = "schema::anything")]
        pub value: Option<BTreeMap<String, Value>>,
    }
}

open_enum! {
    /// What is changed.
    pub enum ApplyTo {
        /// Nothing.
        Invalid = "INVALID",
        /// Listeners.
        Listener = "LISTENER",
        /// Filter chains.
        FilterChain = "FILTER_CHAIN",
        /// Filters of the network.
        NetworkFilter = "NETWORK_FILTER",
        /// Filters of HTTP.
        HttpFilter = "HTTP_FILTER",
        /// Route configurations.
        RouteConfiguration = "ROUTE_CONFIGURATION",
        /// Virtual hosts.
        VirtualHost = "VIRTUAL_HOST",
        /// Routes.
        HttpRoute = "HTTP_ROUTE",
        /// Clusters.
        Cluster = "CLUSTER",
        /// Configurations of filters that are fetched.
        ExtensionConfig = "EXTENSION_CONFIG",
        /// The bootstrap.
        Bootstrap = "BOOTSTRAP",
        /// Listener filters.
        ListenerFilter = "LISTENER_FILTER",
    }

    /// In which proxies, and for which direction.
    pub enum PatchContext {
        /// In all, for both.
        Any = "ANY",
        /// In sidecars, inbound.
        SidecarInbound = "SIDECAR_INBOUND",
        /// In sidecars, outbound.
        SidecarOutbound = "SIDECAR_OUTBOUND",
        /// In gateways.
        Gateway = "GATEWAY",
        /// In waypoints.
        Waypoint = "WAYPOINT",
    }

    /// What a route does.
    pub enum RouteMatchAction {
        /// Anything.
        Any = "ANY",
        /// It leads to a cluster.
        Route = "ROUTE",
        /// It redirects.
        Redirect = "REDIRECT",
        /// It answers.
        DirectResponse = "DIRECT_RESPONSE",
    }

    /// Where in the chain of filters a new one belongs.
    pub enum FilterClass {
        /// As the operation says.
        Unspecified = "UNSPECIFIED",
        /// After authentication.
        Authn = "AUTHN",
        /// After authorization.
        Authz = "AUTHZ",
        /// Before statistics.
        Stats = "STATS",
    }

    /// What is done.
    pub enum PatchOperation {
        /// Nothing.
        Invalid = "INVALID",
        /// It is merged.
        Merge = "MERGE",
        /// It is added.
        Add = "ADD",
        /// It is removed.
        Remove = "REMOVE",
        /// It is put before another.
        InsertBefore = "INSERT_BEFORE",
        /// It is put after another.
        InsertAfter = "INSERT_AFTER",
        /// It is put first.
        InsertFirst = "INSERT_FIRST",
        /// It replaces another.
        Replace = "REPLACE",
        /// It is merged, and its lists replace those of the other.
        MergeAndReplaceList = "MERGE_AND_REPLACE_LIST",
    }
}
