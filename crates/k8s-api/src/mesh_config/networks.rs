//! MeshNetworks: which endpoints are in which network, and how a network is reached from the others.

use std::collections::BTreeMap;

use crate::wire::api_type;

api_type! {
    /// All networks of the mesh.
    pub struct MeshNetworks {
        /// Networks by name.
        pub networks: BTreeMap<String, Network>,
    }

    /// One network: its endpoints reach each other directly.
    pub struct Network {
        /// The endpoints.
        pub endpoints: Vec<NetworkEndpoints>,
        /// Where traffic from other networks enters.
        pub gateways: Vec<NetworkGateway>,
    }

    /// Endpoints by address or origin; at most one field is set.
    pub struct NetworkEndpoints {
        /// Endpoints with an address of this range.
        pub from_cidr: Option<String>,
        /// Endpoints of this cluster.
        pub from_registry: Option<String>,
    }

    /// Where traffic from other networks enters.
    pub struct NetworkGateway {
        /// Its address, an IP or a DNS name.
        pub address: Option<String>,
        /// Its locality.
        pub locality: String,
        /// Its port.
        pub port: u16,
        /// A service whose addresses are the gateway's.
        pub registry_service_name: Option<String>,
    }
}
