//! Configurations of admission webhooks, as far as whoever serves the webhooks looks at them.

use std::fmt;

use k8s_openapi::ByteString;
use serde::{Deserialize, Deserializer};

use crate::wire::{slim_kind, slim_type};

slim_kind! {
    /// Webhooks that change objects.
    pub struct MutatingWebhookConfiguration: k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration {
        /// The webhooks.
        pub webhooks: Vec<Webhook>,
    }
}

slim_kind! {
    /// Webhooks that refuse objects.
    pub struct ValidatingWebhookConfiguration: k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration {
        /// The webhooks.
        pub webhooks: Vec<Webhook>,
    }
}

slim_type! {
    /// One webhook.
    pub struct Webhook {
        /// Its name, a domain.
        pub name: String,
        /// How it is asked.
        pub client_config: WebhookClientConfig,
    }

    /// How a webhook is asked.
    pub struct WebhookClientConfig {
        /// The roots that its certificate must come from, as PEM.
        pub ca_bundle: PemBytes,
    }
}

/// Certificates as PEM, base64 on the wire.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct PemBytes(pub Vec<u8>);

impl fmt::Debug for PemBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

impl<'de> Deserialize<'de> for PemBytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(Option::<ByteString>::deserialize(deserializer)?.unwrap_or_default().0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bundles_are_decoded_and_may_be_absent() {
        let text = r#"{"metadata": {"name": "a"}, "webhooks": [
            {"name": "x", "clientConfig": {"caBundle": "YWJj", "url": "https://a"}},
            {"name": "y", "clientConfig": {"caBundle": null}}, {"name": "z"}]}"#;
        let read: MutatingWebhookConfiguration = serde_json::from_str(text).unwrap();
        let bundles: Vec<&[u8]> = read.webhooks.iter().map(|hook| &*hook.client_config.ca_bundle.0).collect();
        assert_eq!(bundles, [&b"abc"[..], b"", b""]);
    }
}
