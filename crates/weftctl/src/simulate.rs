//! `weftctl simulate`.

use crate::case::{self, CallFields};
use crate::mesh;
use anyhow::{Context as _, Result, bail};
use compile::query;
use explain::{Call, Mode, Protocol, Resources, Tls};
use prost::Message as _;
use proto::envoy::config::listener::v3::Listener;
use proto::envoy::config::route::v3::RouteConfiguration;
use serde_json::{Map, Value, json};
use std::io::Write as _;
use std::path::PathBuf;

/// What to compile, for whom, and what to call.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// The manifests: a file, or a directory that is read with all below it
    #[arg(long, value_name = "FILE_OR_DIR")]
    objects: PathBuf,
    /// The proxy (`proxy`), the mesh configuration (`meshConfig`) and the calls (`calls`), as YAML
    #[arg(long, value_name = "FILE")]
    case: PathBuf,
    /// Complete names without dots by their namespace only: `a` in namespace `app` is `a.app`. For cases whose rules
    /// were written outside of any cluster, such as those of the conformance corpus
    #[arg(long)]
    bare_short_names: bool,
}

/// Prints what becomes of each call, as a JSON list.
pub(crate) fn run(args: &Args) -> Result<()> {
    let case = case::Case::read(&args.case)?;
    let view = mesh::load(&args.objects, &case.mesh_config, case::DOMAIN, args.bare_short_names)?;
    let proxy = case.proxy.as_ref().context("the case has no proxy")?;
    let (_, snapshot) = query::snapshot(&view, &proxy.parse()?);
    let mut resources = Resources::default();
    for listener in snapshot.listeners.values() {
        resources.listeners.push(Listener::decode(listener.bytes().clone())?);
    }
    for route in snapshot.routes.values() {
        let configuration = RouteConfiguration::decode(route.bytes().clone())?;
        resources.routes.insert(configuration.name.clone(), configuration);
    }
    let mut outcomes = Vec::new();
    for call in &case.calls {
        outcomes.push(outcome(&resources, &call.name, &parse(&call.call)?));
    }
    let text = serde_json::to_string_pretty(&outcomes)?;
    writeln!(std::io::stdout().lock(), "{text}").context("cannot write the result")
}

fn outcome(resources: &Resources, name: &str, call: &Call) -> Value {
    let outcome = explain::explain(resources, call);
    let mut fields = Map::from_iter([("name".to_owned(), json!(name))]);
    let texts = [
        ("listener", outcome.listener),
        ("filterChain", outcome.filter_chain),
        ("routeConfig", outcome.route_configuration),
        ("virtualHost", outcome.virtual_host),
        ("route", outcome.route),
        ("cluster", outcome.cluster),
        ("error", outcome.failure.map(|failure| failure.to_string()).unwrap_or_default()),
    ];
    fields.extend(
        texts
            .into_iter()
            .filter(|(_, text)| !text.is_empty())
            .map(|(key, text)| (key.to_owned(), json!(text))),
    );
    if !outcome.weighted_clusters.is_empty() {
        fields.insert("weightedClusters".to_owned(), json!(outcome.weighted_clusters));
    }
    Value::Object(fields)
}

fn parse(fields: &CallFields) -> Result<Call> {
    let optional = |text: &String| (!text.is_empty()).then(|| text.clone());
    let headers = fields.headers.iter().map(|(name, value)| {
        let first = match value {
            Value::Array(values) => values.first().cloned().unwrap_or_default(),
            other => other.clone(),
        };
        let text = first.as_str().map_or_else(|| first.to_string(), str::to_owned);
        (name.to_ascii_lowercase(), text)
    });
    Ok(Call {
        mode: match fields.mode.as_str() {
            "" | "gateway" => Mode::Gateway,
            "outbound" => Mode::Outbound,
            "inbound" => Mode::Inbound,
            other => bail!("mode {other:?} is none of gateway, outbound and inbound"),
        },
        address: match fields.address.as_str() {
            "" => None,
            text => Some(text.parse().with_context(|| format!("address {text:?} is not an IP address"))?),
        },
        port: fields.port,
        protocol: match fields.protocol.as_str() {
            "" | "http" => Protocol::Http,
            "http2" => Protocol::Http2,
            "tcp" => Protocol::Tcp,
            other => bail!("protocol {other:?} is none of http, http2 and tcp"),
        },
        tls: match fields.tls.as_str() {
            "" | "plaintext" => Tls::Plaintext,
            "tls" => Tls::Tls,
            "mtls" => Tls::Mutual,
            other => bail!("tls {other:?} is none of plaintext, tls and mtls"),
        },
        alpn: optional(&fields.alpn),
        sni: optional(&fields.sni),
        host: fields.host.clone(),
        path: optional(&fields.path).unwrap_or_else(|| "/".to_owned()),
        headers: headers.collect(),
        mesh_secret: optional(&fields.mtls_secret_name).unwrap_or_else(|| "default".to_owned()),
        ..Call::default()
    })
}
