//! What several of Istio's kinds share: status, selectors, and the part of Kubernetes' metadata that users of this crate name.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference, Time};

use crate::schema;
use crate::wire::{api_type, open_enum};

api_type! {
    /// What control planes report about an object.
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub struct IstioStatus {
        /// The current conditions, by type.
        pub conditions: Vec<Condition>,
        /// The generation of the object that this status speaks about.
        pub observed_generation: Option<Generation>,
        /// What validation and analysis found.
        pub validation_messages: Vec<ValidationMessage>,
        /// ServiceEntry only: addresses that a control plane allocated. Not in the schema, which keeps unknown fields instead.
        #[schemars(skip)]
        pub addresses: Vec<AllocatedAddress>,
    }

    /// One condition, in Kubernetes' usual shape.
    pub struct Condition {
        /// The time of the last probe.
        #[schemars(extend("format" = "date-time"))]
        pub last_probe_time: Option<String>,
        /// The time at which the status last changed.
        #[schemars(extend("format" = "date-time"))]
        pub last_transition_time: Option<String>,
        /// A sentence for people.
        pub message: String,
        /// The generation of the object that this condition speaks about.
        pub observed_generation: Option<Generation>,
        /// One word for machines.
        pub reason: String,
        /// `True`, `False` or `Unknown`.
        pub status: String,
        /// What the condition is about.
        #[serde(rename = "type")]
        pub type_: String,
    }

    /// One finding of validation or analysis.
    pub struct ValidationMessage {
        /// A page that explains the finding.
        pub documentation_url: String,
        /// How severe the finding is.
        pub level: Option<ValidationLevel>,
        /// Which finding it is.
        #[serde(rename = "type")]
        pub type_: Option<ValidationMessageType>,
    }

    /// Identifies a finding.
    pub struct ValidationMessageType {
        /// A stable code such as `IST0101`.
        pub code: String,
        /// The finding's name.
        pub name: String,
    }

    /// An address that a control plane chose for a ServiceEntry without addresses.
    pub struct AllocatedAddress {
        /// The IP address.
        pub value: String,
        /// The host of `spec.hosts` that it stands for.
        pub host: String,
    }

    /// Selects workloads by labels that they all must carry (networking kinds).
    pub struct WorkloadSelector {
        /// The labels; an empty map selects every workload of the namespace.
        #[schemars(schema_with = "selector_labels")]
        pub labels: BTreeMap<String, String>,
    }

    /// Selects workloads by labels that they all must carry (security kinds and DestinationRule).
    pub struct LabelSelector {
        /// The labels; an empty map selects every workload of the namespace.
        #[schemars(schema_with = "match_labels")]
        pub match_labels: BTreeMap<String, String>,
    }
}

api_type! {
    /// What a policy is attached to, in the style of the Gateway API.
    #[schemars(extend("required" = ["kind", "name"]))]
    pub struct PolicyTargetReference {
        /// The API group; empty for Kubernetes' core.
        #[schemars(extend(
            "maxLength" = 253,
            "pattern" = "^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
        ))]
        pub group: String,
        /// The kind, such as `Gateway` or `Service`.
        #[schemars(extend(
            "minLength" = 1,
            "maxLength" = 63,
            "pattern" = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"
        ))]
        pub kind: String,
        /// The name.
        #[schemars(extend("minLength" = 1, "maxLength" = 253))]
        pub name: String,
        /// Must be empty: the target is in the policy's namespace.
        #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
            "self.size() == 0",
            "cross namespace referencing is not currently supported",
        )])))]
        pub namespace: String,
    }
}

open_enum! {
    /// How severe a finding is.
    pub enum ValidationLevel {
        /// Not said.
        Unknown = "UNKNOWN",
        /// The object does not work.
        Error = "ERROR",
        /// The object may not do what its author expects.
        Warning = "WARNING",
        /// Worth knowing.
        Info = "INFO",
    }
}

/// A generation number: Istio writes it as a string, Kubernetes as a number; both are read.
///
/// Written as a number, because `kubectl wait` compares numbers only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Generation(pub i64);

impl Serialize for Generation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_i64(self.0)
    }
}

impl<'de> Deserialize<'de> for Generation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Either {
            Number(i64),
            Text(String),
        }
        match Either::deserialize(deserializer)? {
            Either::Number(number) => Ok(Self(number)),
            Either::Text(text) => text.parse().map(Self).map_err(D::Error::custom),
        }
    }
}

impl JsonSchema for Generation {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Generation".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{ "type": "integer" }, { "type": "string" }],
            "x-kubernetes-int-or-string": true,
        })
    }
}

fn selector_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 256,
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": schema::cel(&[schema::SELECTOR_VALUE]),
        },
    })
}

fn match_labels(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 4096,
        "x-kubernetes-validations": schema::cel(&[
            ("self.all(key, !key.contains(\"*\"))", "wildcard not allowed in label key match"),
            ("self.all(key, key.size() != 0)", "key must not be empty"),
        ]),
        "additionalProperties": {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": schema::cel(&[
                ("!self.contains(\"*\")", "wildcard not allowed in label value match"),
            ]),
        },
    })
}
