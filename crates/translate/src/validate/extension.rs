//! WasmPlugin and TrafficExtension.

use super::targets;
use crate::report::{At, Report, Translated, object_key};
use k8s_api::extension as api;
use model::Kind;
use std::collections::BTreeSet;

/// Checks a WasmPlugin.
pub(super) fn check_plugin(object: &api::WasmPlugin) -> Translated<()> {
    let report = Report::new(object_key(Kind::WasmPlugin, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    targets::check(&at, spec.selector.as_ref(), spec.target_ref.as_ref(), &spec.target_refs);
    check_program(&at, &spec.url, &spec.sha256, spec.vm_config.as_ref());
    check_match(&at, &spec.match_);
    report.all_or_nothing(())
}

/// Checks a TrafficExtension.
pub(super) fn check_extension(object: &api::TrafficExtension) -> Translated<()> {
    let report = Report::new(object_key(Kind::TrafficExtension, &object.metadata));
    let (spec, at) = (&object.spec, report.at("spec"));
    targets::check(&at, spec.selector.as_ref(), None, &spec.target_refs);
    match (&spec.wasm, &spec.lua) {
        (Some(wasm), None) => {
            check_program(&at.field("wasm"), &wasm.url, &wasm.sha256, wasm.vm_config.as_ref());
        }
        (None, Some(lua)) if lua.inline_code.is_empty() => {
            at.field("lua").field("inlineCode").reject("must not be empty");
        }
        (None, Some(lua)) if lua.inline_code.len() > 65536 => {
            at.field("lua").field("inlineCode").reject("must not have more than 65536 bytes");
        }
        (None, Some(_)) => {}
        _ => at.reject("exactly one of wasm and lua must be set"),
    }
    check_match(&at, &spec.match_);
    report.all_or_nothing(())
}

fn check_program(at: &At<'_>, url: &str, checksum: &str, machine: Option<&api::VmConfig>) {
    let at_url = at.field("url");
    let (scheme, rest) = url.split_once("://").unwrap_or(("oci", url));
    if url.is_empty() {
        at_url.reject("is required");
    } else if !["http", "https", "oci", "file"].contains(&scheme) {
        at_url.reject(format!("{url:?}: the scheme is none of http, https, oci and file"));
    } else if rest.is_empty()
        || url.contains(|c: char| c.is_whitespace() || c.is_control() || "#%$\\".contains(c))
    {
        at_url.reject(format!("{url:?} is not a URL"));
    }
    let is_checksum =
        checksum.len() == 64 && checksum.bytes().all(|byte| b"0123456789abcdef".contains(&byte));
    if !checksum.is_empty() && !is_checksum {
        at.field("sha256").reject("must have 64 digits of 0-9a-f");
    }
    let mut names = BTreeSet::new();
    for (index, variable) in machine.map_or(&[][..], |machine| &machine.env).iter().enumerate() {
        let at = at.field("vmConfig");
        let at = at.field("env");
        let at = at.index(index);
        if variable.name.is_empty() {
            at.field("name").reject("must not be empty");
        } else if !names.insert(&variable.name) {
            at.field("name").reject(format!("{:?} is there twice", variable.name));
        }
        if variable.value_from == Some(api::VariableSource::Host) && !variable.value.is_empty() {
            at.field("value").reject("must not be set where valueFrom is HOST");
        }
    }
}

fn check_match(at: &At<'_>, selectors: &[api::TrafficSelector]) {
    for (index, selector) in selectors.iter().enumerate() {
        for (place, port) in selector.ports.iter().enumerate() {
            let at = at.field("match");
            let at = at.index(index);
            let at = at.field("ports");
            let at = at.index(place);
            at.field("number").check(crate::parse::port(port.number.unwrap_or_default()));
        }
    }
}
