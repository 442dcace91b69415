//! Sets up traffic capture, in the place of `istio-iptables`: the init container of a pod, or the start of a virtual
//! machine, runs it before the proxy.
//!
//! ```text
//! flags, environment ─▶ settings ─▶ capture::Plan ─┬─▶ backend   nft, or iptables-restore
//!                                                  └─▶ routing   rtnetlink: ::6, and TPROXY's routing table
//!                                    validation ◀──── the kernel does so
//! ```
//!
//! What is there of an earlier run is replaced, whichever program put it there, so that it can be run again at any time.

mod backend;
mod netlink;
mod programs;
mod routing;
mod settings;
mod validation;

pub use settings::{Backend, Families, Request};
pub use validation::NotCaptured;

use crate::args::CaptureArgs;
use crate::config::Environment;
use crate::logging;
use ::capture::{Family, Plan, nftables};
use anyhow::Context as _;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;

/// The status for Istio's validation having failed, by which its tools find pods to repair.
pub const NOT_CAPTURED_STATUS: u8 = 126;

/// Does what is asked for.
///
/// # Errors
/// What is missing, or what the kernel refuses.
pub fn run(args: &CaptureArgs) -> anyhow::Result<()> {
    logging::start(&args.log)?;
    if let Some(path) = &args.network_namespace {
        let namespace = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
            .with_context(|| format!("cannot enter the network namespace {}", path.display()))?;
    }
    let request = Request::load(args, &Environment::of_process(), &|path| std::fs::read_to_string(path))?;
    for warning in &request.warnings {
        tracing::warn!("{warning}");
    }
    if request.applies {
        let plan = if request.cleans { Plan::nothing() } else { Plan::new(&request.settings) };
        if request.is_dry_run {
            return Ok(std::io::stdout().write_all(dry_run(&request, &plan).as_bytes())?);
        }
        let by = backend::apply(&plan, request.backend, &request.kernel)?;
        routing::apply(&plan.routing, &request.settings.tproxy, &request.kernel)?;
        if request.cleans {
            tracing::info!("traffic is not captured any more");
        } else {
            tracing::info!(by, ipv6 = request.settings.ipv6, "traffic is captured");
        }
    }
    if request.validates && !request.is_dry_run {
        validation::run(&request)?;
        tracing::info!("capture works");
    }
    Ok(())
}

/// Returns what would be done, in the language of the program that would do it; nft, if that is not known.
fn dry_run(request: &Request, plan: &Plan) -> String {
    let mut text = match request.backend {
        Backend::Auto | Backend::Nftables => {
            format!("# nft --file -\n{}", nftables::script(plan, &request.kernel))
        }
        Backend::Iptables => {
            let nothing = ::capture::iptables::Existing::default();
            let input = |family| ::capture::iptables::script(plan.family(family), &nothing);
            let mut text = format!("# iptables-restore --noflush\n{}", input(Family::V4));
            if request.kernel.contains(&Family::V6) {
                text.push_str(&format!("# ip6tables-restore --noflush\n{}", input(Family::V6)));
            }
            text
        }
    };
    for step in routing::steps(&plan.routing, &request.kernel) {
        text.push_str(&format!("# {step}\n"));
    }
    text
}
