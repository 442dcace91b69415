//! A stand-in for the applications of `samples/bookinfo`: `bookinfo SERVICE VERSION` answers on port 9080 and calls the
//! others by their names, as if there were no mesh.

use std::net::{Ipv4Addr, ToSocketAddrs};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail};
use e2e::app::{self, App};
use testkit::rig::http::Request;

const PORT: u16 = 9080;

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    e2e::exit(serve(&arguments.next().unwrap_or_default(), &arguments.next().unwrap_or_default()))
}

fn serve(service: &str, version: &str) -> anyhow::Result<()> {
    let (name, version) = (service.to_owned(), version.to_owned());
    let _app = App::http((Ipv4Addr::UNSPECIFIED, PORT).into(), move |request| {
        let (status, body) = match answer(&name, &version) {
            Ok(body) => (200, body),
            Err(error) => (502, format!("{name} {version}: {error:#}")),
        };
        // Who has asked, as the proxy says: nobody, without mutual TLS.
        let client =
            request.header("x-forwarded-client-cert").split(';').find(|part| part.starts_with("URI="));
        app::Answer::ok(format!("{body} <- {}\n", client.unwrap_or("somebody"))).status(status)
    })?;
    loop {
        thread::park();
    }
}

fn answer(service: &str, version: &str) -> anyhow::Result<String> {
    Ok(match (service, version) {
        ("productpage", _) => {
            format!("productpage {version}\n  {}\n  {}\n", call("details")?, call("reviews")?)
        }
        ("details", _) => format!("details {version}: 200 pages, paperback"),
        ("ratings", _) => format!("ratings {version}: 5 and 4 of 5"),
        ("reviews", "v1") => "reviews v1: well written".to_owned(),
        ("reviews", _) => format!("reviews {version}: well written ({})", call("ratings")?),
        _ => bail!("not an application of bookinfo"),
    })
}

fn call(service: &str) -> anyhow::Result<String> {
    let address = (service, PORT).to_socket_addrs().with_context(|| format!("the name {service}"))?;
    let address = address.into_iter().next().with_context(|| format!("{service} has no address"))?;
    let request = Request::get("/").header("host", &format!("{service}:{PORT}"));
    let answer = request.limit(Duration::from_secs(5)).send(address)?;
    let text = answer.text().trim_end().to_owned();
    if answer.status != 200 {
        bail!("{service} says {}: {text}", answer.status);
    }
    Ok(text)
}
