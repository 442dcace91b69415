//! Parsers of the small values that objects are made of. Their errors say what would be right.

mod domain;
mod duration;
mod export_to;
mod headers;
mod regex;
mod values;

pub use domain::{domain, is_dns_label, unix_path, wildcard_domain};
pub(crate) use domain::{ip_or_fqdn, namespaced_host, not_partial_wildcard};
pub use duration::duration;
pub(crate) use duration::positive_duration;
pub(crate) use export_to::{ExportRules, export_to, export_to_annotation};
pub(crate) use headers::{header_name, header_value, is_authority, is_internal, is_method, retry_condition};
pub(crate) use regex::regex;
pub(crate) use values::{base64, fraction, gateway_ref, ip, percent, port, required, selector, subnet};

/// What is wrong with a value, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(pub String);

impl Invalid {
    pub(crate) fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}
