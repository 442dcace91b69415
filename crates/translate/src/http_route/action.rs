//! What an HTTP rule does with a request.

use super::{headers, text};
use crate::parse::{base64, port};
use crate::report::At;
use crate::virtual_service::{Scope, destination, unknown, weights};
use k8s_api::virtual_service as api;
use model::Namespace;
use model::virtual_service::{
    DirectBody, DirectResponse, HttpAction, HttpDestination, Redirect, RedirectPort,
};

/// Envoy refuses larger bodies, with the whole route configuration.
const MAX_BODY: usize = 1024 * 1024;
const LARGE_BODY: usize = 100 * 1024;

/// Rejects fields of a rule that exclude each other.
pub(super) fn check_conflicts(at: &At<'_>, scope: &Scope<'_>, rule: &api::HttpRoute) {
    let conflict = |used: bool, field: &str, with: &str| {
        if used {
            at.field(field).reject(format!("cannot be combined with {with}"));
        }
    };
    if rule.delegate.is_some() && !scope.is_delegate {
        conflict(rule.redirect.is_some(), "redirect", "delegate");
        conflict(!rule.route.is_empty(), "route", "delegate");
        if rule.direct_response.is_some() {
            at.field("directResponse").warn("has no effect beside delegate");
        }
        return;
    }
    conflict(rule.delegate.is_some(), "delegate", "being delegated to: delegation is one level deep");
    if rule.redirect.is_some() {
        conflict(!rule.route.is_empty(), "route", "redirect");
        conflict(rule.fault.is_some(), "fault", "redirect");
        conflict(rule.rewrite.is_some(), "rewrite", "redirect");
        conflict(rule.direct_response.is_some(), "directResponse", "redirect");
    } else if rule.direct_response.is_some() {
        conflict(!rule.route.is_empty(), "route", "directResponse");
        conflict(rule.fault.is_some(), "fault", "directResponse");
        conflict(rule.rewrite.is_some(), "rewrite", "directResponse");
    } else if rule.route.is_empty() {
        at.reject("needs something to do: one of route, redirect, directResponse and delegate");
    }
    conflict(rule.mirror.is_some() && !rule.mirrors.is_empty(), "mirrors", "mirror");
}

/// Parses what a rule does.
pub(super) fn action(at: &At<'_>, scope: &Scope<'_>, rule: &api::HttpRoute) -> HttpAction {
    if let Some(delegate) = rule.delegate.as_ref().filter(|_| !scope.is_delegate) {
        let namespace =
            if delegate.namespace.is_empty() { scope.namespace } else { delegate.namespace.as_str() };
        return HttpAction::Delegate {
            namespace: Namespace::new(namespace),
            name: delegate.name.as_str().into(),
        };
    }
    if let Some(given) = &rule.redirect {
        return redirect(&at.field("redirect"), given);
    }
    if let Some(given) = &rule.direct_response {
        return HttpAction::DirectResponse(direct_response(&at.field("directResponse"), given));
    }
    HttpAction::Route(routes(&at.field("route"), scope, &rule.route))
}

fn routes(at: &At<'_>, scope: &Scope<'_>, given: &[api::HttpRouteDestination]) -> Vec<HttpDestination> {
    let shares = weights(at, &given.iter().map(|route| route.weight).collect::<Vec<_>>());
    let route = |((i, given), weight): ((usize, &api::HttpRouteDestination), u32)| {
        let at = at.index(i);
        let (headers, authority_from_headers) = headers(&at.field("headers"), given.headers.as_ref());
        let destination = destination(&at.field("destination"), scope, given.destination.as_ref());
        HttpDestination { destination, weight, headers, authority_from_headers }
    };
    given.iter().enumerate().zip(shares).map(route).collect()
}

fn redirect(at: &At<'_>, given: &api::HttpRedirect) -> HttpAction {
    let at_code = at.field("redirectCode");
    let code = match given.redirect_code.unwrap_or_default() {
        0 => 301,
        code @ (301 | 302 | 303 | 307 | 308) => u16::try_from(code).unwrap_or(301),
        code @ 300..=399 => {
            // Istio accepts these and sends Envoy a route that does nothing, which Envoy refuses.
            at_code.warn(format!(
                "{code} is not a redirect: requests are answered with that status and no location"
            ));
            return HttpAction::DirectResponse(DirectResponse {
                status: u16::try_from(code).unwrap_or(304),
                body: None,
            });
        }
        code => {
            at_code.reject(format!("{code} is not a redirect: use 301, 302, 303, 307 or 308"));
            301
        }
    };
    if !given.uri.is_empty() && !given.prefix_rewrite.is_empty() {
        at.field("prefixRewrite").reject("cannot be combined with uri");
    }
    let place = redirect_port(at, given);
    let changes = [&given.uri, &given.prefix_rewrite, &given.authority, &given.scheme];
    if changes.iter().all(|change| change.is_empty()) && place.is_none() {
        at.reject("needs something to change: uri, prefixRewrite, authority, scheme or port");
    }
    let uri = match given.prefix_rewrite.as_str() {
        "" => text(&given.uri),
        prefix => Some(format!("%PREFIX()%{prefix}").into()),
    };
    let (authority, scheme) = (text(&given.authority), text(&given.scheme));
    HttpAction::Redirect(Redirect { uri, authority, port: place, scheme, code })
}

fn redirect_port(at: &At<'_>, given: &api::HttpRedirect) -> Option<RedirectPort> {
    let at_derive = at.field("derivePort");
    if given.port.is_some() && given.derive_port.is_some() {
        at_derive.reject("cannot be combined with port");
    }
    if let Some(number) = given.port {
        return at.field("port").check(port(number)).map(RedirectPort::Number);
    }
    match given.derive_port.as_ref()? {
        api::RedirectPort::FromProtocolDefault => Some(RedirectPort::FromProtocolDefault),
        api::RedirectPort::FromRequestPort => Some(RedirectPort::FromRequestPort),
        api::RedirectPort::Other(value) => {
            unknown(&at_derive, value, api::RedirectPort::VALUES);
            None
        }
    }
}

fn direct_response(at: &At<'_>, given: &api::HttpDirectResponse) -> DirectResponse {
    let status = given.status.unwrap_or_default();
    if !(200..=599).contains(&status) {
        at.field("status").reject(format!("{status} is not in the range 200..599"));
    }
    let at_body = at.field("body");
    let body = given.body.as_ref().and_then(|body| match (&body.string, &body.bytes) {
        (Some(_), Some(_)) => {
            at_body.reject("only one of string and bytes can be set");
            None
        }
        (Some(text), None) => Some(DirectBody::Text(text.as_str().into())),
        (None, Some(bytes)) => {
            at_body.field("bytes").check(base64(bytes)).map(|bytes| DirectBody::Bytes(bytes.into()))
        }
        (None, None) => None,
    });
    let size = match &body {
        Some(DirectBody::Text(text)) => text.len(),
        Some(DirectBody::Bytes(bytes)) => bytes.len(),
        None => 0,
    };
    if size > MAX_BODY {
        at_body.reject(format!("has {size} bytes: at most {MAX_BODY} are allowed"));
    } else if size > LARGE_BODY {
        at_body.warn(format!(
            "has {size} bytes, which are sent to every proxy: serve large bodies from a service"
        ));
    }
    DirectResponse { status: u16::try_from(status).unwrap_or_default(), body }
}
