//! AuthorizationPolicy: which requests and connections are allowed.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::crd::column;
use crate::meta::{LabelSelector, PolicyTargetReference};
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Allows or denies requests to workloads.
    AuthorizationPolicy(AuthorizationPolicySpec) {
        group: "security.istio.io",
        plural: "authorizationpolicies",
        short_names: &["ap"],
        categories: &["istio-io", "security-istio-io"],
        versions: &["v1", "v1beta1"],
        columns: &[
            column("Action", "string", ".spec.action"),
            column("Age", "date", ".metadata.creationTimestamp"),
        ],
        spec_required: false,
    }
}

api_type! {
    /// What is done with which requests.
    #[schemars(
        extend("x-kubernetes-validations" = schema::cel(&[schema::ONE_TARGET])),
        transform = schema::one_of(&["provider"])
    )]
    pub struct AuthorizationPolicySpec {
        /// What is done; absent means `ALLOW`.
        pub action: Option<Action>,
        /// Who decides; for `CUSTOM`.
        pub provider: Option<ExtensionProviderReference>,
        /// The requests; a request must match one of them. None means no request.
        #[schemars(extend("maxItems" = 512))]
        pub rules: Vec<Rule>,
        /// The workloads, by labels.
        pub selector: Option<LabelSelector>,
        /// One target; `targetRefs` is the newer form.
        pub target_ref: Option<PolicyTargetReference>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
    }

    /// Names a provider of the mesh configuration.
    pub struct ExtensionProviderReference {
        /// Its name.
        pub name: String,
    }

    /// Requests. All of its parts must match; a part that is absent matches all.
    pub struct Rule {
        /// Where the request comes from: one of these.
        #[schemars(extend("maxItems" = 512))]
        pub from: Vec<Origin>,
        /// What it is for: one of these.
        pub to: Vec<To>,
        /// What else holds: all of these.
        pub when: Vec<RuleCondition>,
    }

    /// Where a request comes from.
    pub struct Origin {
        /// All of its parts must match.
        pub source: Option<Source>,
    }

    /// Where a request comes from. A list matches if one of its entries does.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
        "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) && !has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true",
        "Cannot set serviceAccounts with namespaces or principals",
    )])))]
    pub struct Source {
        /// Addresses of the connection.
        pub ip_blocks: Vec<String>,
        /// Namespaces of the peer.
        pub namespaces: Vec<String>,
        /// Not these addresses of the connection.
        pub not_ip_blocks: Vec<String>,
        /// Not these namespaces of the peer.
        pub not_namespaces: Vec<String>,
        /// Not these identities of the peer.
        pub not_principals: Vec<String>,
        /// Not these addresses of the client.
        pub not_remote_ip_blocks: Vec<String>,
        /// Not these identities of the request's token.
        pub not_request_principals: Vec<String>,
        /// Not these service accounts of the peer.
        #[schemars(schema_with = "service_accounts")]
        pub not_service_accounts: Vec<String>,
        /// Not these trust domains of the peer.
        pub not_trust_domains: Vec<String>,
        /// Identities of the peer, without `spiffe://`.
        pub principals: Vec<String>,
        /// Addresses of the client, as trusted proxies report them.
        pub remote_ip_blocks: Vec<String>,
        /// Identities of the request's token, as `issuer/subject`.
        pub request_principals: Vec<String>,
        /// Service accounts of the peer, as `namespace/name` or a name in the policy's namespace.
        #[schemars(schema_with = "service_accounts")]
        pub service_accounts: Vec<String>,
        /// Trust domains of the peer.
        pub trust_domains: Vec<String>,
    }

    /// What a request is for.
    pub struct To {
        /// All of its parts must match.
        pub operation: Option<Operation>,
    }

    /// What a request is for. A list matches if one of its entries does.
    pub struct Operation {
        /// Hosts.
        pub hosts: Vec<String>,
        /// Methods of HTTP; for gRPC always `POST`.
        pub methods: Vec<String>,
        /// Not these hosts.
        pub not_hosts: Vec<String>,
        /// Not these methods.
        pub not_methods: Vec<String>,
        /// Not these paths.
        pub not_paths: Vec<String>,
        /// Not these ports.
        pub not_ports: Vec<String>,
        /// Paths; for gRPC `/package.service/method`.
        pub paths: Vec<String>,
        /// Ports of the workload.
        pub ports: Vec<String>,
    }

    /// A condition on an attribute.
    #[schemars(extend("required" = ["key"]))]
    pub struct RuleCondition {
        /// The attribute, such as `request.headers[x-token]`.
        pub key: String,
        /// It must have none of these values.
        pub not_values: Vec<String>,
        /// It must have one of these values.
        pub values: Vec<String>,
    }
}

open_enum! {
    /// What is done with requests that match.
    pub enum Action {
        /// They are allowed, and others are not.
        Allow = "ALLOW",
        /// They are denied.
        Deny = "DENY",
        /// They are noted.
        Audit = "AUDIT",
        /// A provider decides.
        Custom = "CUSTOM",
    }
}

fn service_accounts(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 16, "items": { "type": "string", "maxLength": 320 } })
}
