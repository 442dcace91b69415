//! RequestAuthentication: which tokens of end users are understood.

use schemars::{Schema, SchemaGenerator, json_schema};

use crate::meta::{LabelSelector, PolicyTargetReference};
use crate::schema;
use crate::wire::{api_type, istio_kind, open_enum};

istio_kind! {
    /// Which tokens workloads understand.
    RequestAuthentication(RequestAuthenticationSpec) {
        group: "security.istio.io",
        plural: "requestauthentications",
        short_names: &["ra"],
        categories: &["istio-io", "security-istio-io"],
        versions: &["v1", "v1beta1"],
        columns: &[],
        spec_required: false,
    }
}

api_type! {
    /// Which tokens are understood.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[schema::ONE_TARGET])))]
    pub struct RequestAuthenticationSpec {
        /// The issuers.
        #[schemars(extend("maxItems" = 4096))]
        pub jwt_rules: Vec<JwtRule>,
        /// The workloads, by labels.
        pub selector: Option<LabelSelector>,
        /// One target; `targetRefs` is the newer form.
        pub target_ref: Option<PolicyTargetReference>,
        /// The targets.
        #[schemars(extend("maxItems" = 16))]
        pub target_refs: Vec<PolicyTargetReference>,
    }

    /// Tokens of one issuer.
    #[schemars(extend("x-kubernetes-validations" = schema::cel(&[(
        "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1",
        "only one of jwks or jwksUri can be set",
    )])))]
    pub struct JwtRule {
        /// For whom tokens must be; empty means anybody.
        #[schemars(schema_with = "schema::texts")]
        pub audiences: Vec<String>,
        /// Whether the token is passed on to the application.
        pub forward_original_token: bool,
        /// Cookies that hold a token.
        #[schemars(schema_with = "schema::texts")]
        pub from_cookies: Vec<String>,
        /// Headers that hold a token.
        pub from_headers: Vec<JwtHeader>,
        /// Parameters of the query that hold a token.
        #[schemars(schema_with = "schema::texts")]
        pub from_params: Vec<String>,
        /// The issuer.
        #[schemars(extend("minLength" = 1))]
        pub issuer: String,
        /// The issuer's keys.
        pub jwks: String,
        /// Where the issuer's keys are; an older spelling.
        #[serde(rename = "jwks_uri")]
        #[schemars(schema_with = "keys_url")]
        pub jwks_uri_old: String,
        /// Where the issuer's keys are.
        #[schemars(schema_with = "keys_url")]
        pub jwks_uri: String,
        /// Claims that are passed on in headers.
        pub output_claim_to_headers: Vec<ClaimToHeader>,
        /// The header that the token's payload is passed on in.
        pub output_payload_to_header: String,
        /// Whether a token must be there.
        pub presence: Option<JwtPresence>,
        /// Claims that are lists of words, besides `scope` and `permission`.
        #[schemars(schema_with = "claims")]
        pub space_delimited_claims: Vec<String>,
        /// How long fetching keys may take.
        #[schemars(schema_with = "schema::duration")]
        pub timeout: Option<String>,
    }

    /// A header that holds a token.
    #[schemars(extend("required" = ["name"]))]
    pub struct JwtHeader {
        /// The header.
        #[schemars(extend("minLength" = 1))]
        pub name: String,
        /// What stands before the token.
        pub prefix: String,
    }

    /// A claim that is passed on in a header.
    #[schemars(extend("required" = ["header", "claim"]))]
    pub struct ClaimToHeader {
        /// The claim.
        #[schemars(extend("minLength" = 1))]
        pub claim: String,
        /// The header.
        #[schemars(extend("minLength" = 1, "pattern" = "^[-_A-Za-z0-9]+$"))]
        pub header: String,
    }
}

open_enum! {
    /// Whether a token must be there.
    pub enum JwtPresence {
        /// It may be missing.
        Optional = "OPTIONAL",
        /// It must be there.
        Required = "REQUIRED",
    }
}

fn keys_url(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "minLength": 1,
        "maxLength": 2048,
        "x-kubernetes-validations": schema::cel(&[(
            "url(self).getScheme() in [\"http\", \"https\"]",
            "url must have scheme http:// or https://",
        )]),
    })
}

fn claims(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "array", "maxItems": 64, "items": { "type": "string", "minLength": 1 } })
}
