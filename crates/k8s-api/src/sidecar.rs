//! Sidecar: what the proxies of some workloads accept and which services they see.

use crate::destination_rule::ConnectionPoolSettings;
use crate::gateway::{Port, ServerTlsSettings};
use crate::meta::WorkloadSelector;
use crate::virtual_service::Destination;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Narrows what the selected sidecars listen to and reach.
    Sidecar(SidecarSpec) {
        group: "networking.istio.io",
        plural: "sidecars",
        short_names: &[],
        categories: &["istio-io", "networking-istio-io"],
        versions: &["v1", "v1alpha3", "v1beta1"],
        columns: &[],
        spec_required: false,
    }
}

api_type! {
    /// What sidecars listen to and reach.
    pub struct SidecarSpec {
        /// Listeners for outbound traffic with the services they lead to; empty means the namespace's default.
        pub egress: Vec<IstioEgressListener>,
        /// Connection limits towards the application, unless a listener says otherwise.
        pub inbound_connection_pool: Option<ConnectionPoolSettings>,
        /// Listeners for inbound traffic; empty means those of the workload's services.
        pub ingress: Vec<IstioIngressListener>,
        /// What happens to traffic for unknown destinations. An empty message means `REGISTRY_ONLY`.
        pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
        /// The workloads; absent means every one of the namespace.
        pub workload_selector: Option<WorkloadSelector>,
    }

    /// A listener for outbound traffic.
    #[schemars(extend("required" = ["hosts"]))]
    pub struct IstioEgressListener {
        /// The address to listen on.
        pub bind: String,
        /// How traffic gets to the listener.
        pub capture_mode: Option<CaptureMode>,
        /// Services that can be reached, as `namespace/host` with wildcards.
        pub hosts: Vec<String>,
        /// The port to listen on; absent means every port of the hosts.
        pub port: Option<Port>,
    }

    /// A listener for inbound traffic.
    #[schemars(extend("required" = ["port"]))]
    pub struct IstioIngressListener {
        /// The address to listen on.
        pub bind: String,
        /// How traffic gets to the listener.
        pub capture_mode: Option<CaptureMode>,
        /// Connection limits towards the application.
        pub connection_pool: Option<ConnectionPoolSettings>,
        /// Where the application is: `127.0.0.1:port`, `0.0.0.0:port`, `[::1]:port`, `[::]:port` or `unix://` and a path.
        pub default_endpoint: String,
        /// The port to listen on.
        pub port: Option<Port>,
        /// TLS that the sidecar terminates.
        pub tls: Option<ServerTlsSettings>,
    }

    /// What happens to traffic for unknown destinations.
    pub struct OutboundTrafficPolicy {
        /// Where such traffic is sent instead of its destination.
        pub egress_proxy: Option<Destination>,
        /// Whether such traffic is allowed; absent means `REGISTRY_ONLY`.
        pub mode: Option<OutboundTrafficPolicyMode>,
    }
}

open_enum! {
    /// How traffic gets to a listener.
    pub enum CaptureMode {
        /// As the proxy is set up.
        Default = "DEFAULT",
        /// Redirected by iptables.
        Iptables = "IPTABLES",
        /// Not redirected: callers use the listener's own address.
        None = "NONE",
    }

    /// Whether traffic for unknown destinations is allowed.
    pub enum OutboundTrafficPolicyMode {
        /// It is not.
        RegistryOnly = "REGISTRY_ONLY",
        /// It is.
        AllowAny = "ALLOW_ANY",
    }
}
