//! How API values are read from and written to JSON.
//!
//! Every type of this crate is lenient in the same way, so the rules live in macros rather than in attributes repeated on a thousand
//! fields: a field that is absent or `null` takes its default, an unknown field is skipped (the [`crate::yaml`] module reports it), an
//! unknown enum value is kept as it was written, and a field at its default is not written. `Option` marks the fields where "absent"
//! and "present but empty" mean different things on Istio's wire (messages, wrappers, members of a oneof and all numbers).

use serde::{Deserialize, Deserializer};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

/// Reads `null` as the default, which is what Go and protobuf JSON do for lists, maps and scalars.
pub(crate) fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// True for values that need not be written.
pub(crate) fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Reads metadata without what no mesh looks at: `managedFields` are half of a typical object.
pub(crate) fn metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata: ObjectMeta = null_is_default(deserializer)?;
    metadata.managed_fields = None;
    Ok(metadata)
}

/// Reads metadata of the slim kinds, which are never written back: also without the copy that `kubectl apply` leaves.
pub(crate) fn slim_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    let mut metadata = metadata(deserializer)?;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    }
    Ok(metadata)
}

/// Declares structs of the wire format. See the module's documentation for what each field gets.
macro_rules! api_type {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
    )+) => {$(
        #[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        $(#[$meta])*
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(
                    deserialize_with = "crate::wire::null_is_default",
                    skip_serializing_if = "crate::wire::is_default"
                )]
                pub $field: $type,
            )*
        }
    )+};
}

/// Tells which fields of a merged configuration need not be written. Unlike in API objects, a zero may differ from the default there.
pub(crate) trait Absent {
    /// True for an `Option` that is `None`.
    fn is_absent(&self) -> bool {
        false
    }
}

impl<T> Absent for Option<T> {
    fn is_absent(&self) -> bool {
        self.is_none()
    }
}

impl Absent for String {}
impl Absent for bool {}
impl Absent for u16 {}
impl Absent for u32 {}
impl<T> Absent for Vec<T> {}
impl<K, V> Absent for std::collections::BTreeMap<K, V> {}

/// Declares structs of a configuration whose defaults are not zeros: as `api_type`, but every value is written and `Default` is left to
/// the author.
macro_rules! mesh_type {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
    )+) => {$(
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        $(#[$meta])*
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(
                    default,
                    deserialize_with = "crate::wire::null_is_default",
                    skip_serializing_if = "crate::wire::Absent::is_absent"
                )]
                pub $field: $type,
            )*
        }
    )+};
}

/// Declares structs that are only read (the slim Kubernetes kinds): as `api_type`, without `Serialize` and schema.
macro_rules! slim_type {
    ($(
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
    )+) => {$(
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        $(#[$meta])*
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            $(
                $(#[$field_meta])*
                #[serde(deserialize_with = "crate::wire::null_is_default")]
                pub $field: $type,
            )*
        }
    )+};
}

/// Declares a slim Kubernetes kind: metadata plus the given fields, usable with `kube::Api`.
macro_rules! slim_kind {
    (
        $(#[$meta:meta])*
        pub struct $name:ident : $inherit:path {
            $( $(#[$field_meta:meta])* pub $field:ident : $type:ty ),* $(,)?
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize, kube_derive::Resource)]
        #[resource(inherit = $inherit, crates(kube_core = "::kube_core"))]
        $(#[$meta])*
        #[serde(rename_all = "camelCase", default)]
        pub struct $name {
            /// Name, namespace, labels, annotations, owners; without managed fields and kubectl's last-applied copy.
            #[serde(deserialize_with = "crate::wire::slim_metadata")]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            $(
                $(#[$field_meta])*
                #[serde(deserialize_with = "crate::wire::null_is_default")]
                pub $field: $type,
            )*
        }
    };
}

/// Declares an enum whose unknown values are kept, so that a newer object never fails to decode.
///
/// The first variant is the value 0 of the protobuf enum, hence the default.
macro_rules! open_enum {
    ($(
        $(#[$meta:meta])*
        pub enum $name:ident {
            $( $(#[$variant_meta:meta])* $variant:ident = $text:literal ),+ $(,)?
        }
    )+) => {$(
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name {
            $( $(#[$variant_meta])* $variant, )+
            /// A value that this version does not know, as it was written.
            Other(String),
        }

        impl $name {
            /// The values that the schema allows, in declaration order.
            pub const VALUES: &'static [&'static str] = &[$($text),+];

            /// Returns the value as it is written in an object.
            pub fn as_str(&self) -> &str {
                match self {
                    $( Self::$variant => $text, )+
                    Self::Other(text) => text,
                }
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::from(Self::VALUES[0])
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                match text {
                    $( $text => Self::$variant, )+
                    other => Self::Other(other.to_owned()),
                }
            }
        }

        impl std::fmt::Display for $name {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(self.as_str())
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(self.as_str())
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                Ok(Self::from(&*text))
            }
        }

        impl schemars::JsonSchema for $name {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($name).into()
            }

            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "enum": Self::VALUES })
            }
        }
    )+};
}

/// Declares one of Istio's kinds: the root object with `metadata`, `spec` and `status`, its [`kube_core::Resource`] and what its
/// CustomResourceDefinition says beyond the schema.
///
/// Not kube's `CustomResource` derive: that makes one Rust type per version and refuses an object without `spec`, which Istio's
/// schemas allow.
macro_rules! istio_kind {
    (
        $(#[$meta:meta])*
        $name:ident($spec:ty) {
            group: $group:literal,
            plural: $plural:literal,
            short_names: $short:expr,
            categories: $categories:expr,
            versions: $versions:expr,
            columns: $columns:expr,
            spec_required: $spec_required:literal $(,)?
        }
    ) => {
        #[derive(Clone, Debug, Default, PartialEq, serde::Deserialize)]
        $(#[$meta])*
        #[serde(default)]
        pub struct $name {
            /// Name, namespace, labels, annotations and the rest of Kubernetes' metadata, without managed fields.
            #[serde(deserialize_with = "crate::wire::metadata")]
            pub metadata: k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta,
            /// What the user asks for.
            #[serde(deserialize_with = "crate::wire::null_is_default")]
            pub spec: $spec,
            /// What control planes report.
            #[serde(deserialize_with = "crate::wire::null_is_default")]
            pub status: Option<crate::meta::IstioStatus>,
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                use serde::ser::SerializeStruct;
                let mut object = serializer.serialize_struct(stringify!($name), 5)?;
                let version = <Self as kube_core::Resource>::api_version(&());
                object.serialize_field("apiVersion", &version)?;
                object.serialize_field("kind", stringify!($name))?;
                object.serialize_field("metadata", &self.metadata)?;
                object.serialize_field("spec", &self.spec)?;
                if let Some(status) = &self.status {
                    object.serialize_field("status", status)?;
                }
                object.end()
            }
        }

        impl kube_core::Resource for $name {
            type DynamicType = ();
            type Scope = kube_core::NamespaceResourceScope;

            fn kind(_: &()) -> std::borrow::Cow<'_, str> {
                stringify!($name).into()
            }

            fn group(_: &()) -> std::borrow::Cow<'_, str> {
                $group.into()
            }

            fn version(_: &()) -> std::borrow::Cow<'_, str> {
                <Self as crate::crd::IstioKind>::DEFINITION.preferred_version().into()
            }

            fn plural(_: &()) -> std::borrow::Cow<'_, str> {
                $plural.into()
            }

            fn meta(&self) -> &k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &self.metadata
            }

            fn meta_mut(&mut self) -> &mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta {
                &mut self.metadata
            }
        }

        impl crate::crd::IstioKind for $name {
            type Spec = $spec;
            const DEFINITION: crate::crd::Definition = crate::crd::Definition {
                group: $group,
                kind: stringify!($name),
                plural: $plural,
                short_names: $short,
                categories: $categories,
                versions: $versions,
                columns: $columns,
                spec_required: $spec_required,
            };
        }
    };
}

pub(crate) use {api_type, istio_kind, mesh_type, open_enum, slim_kind, slim_type};
