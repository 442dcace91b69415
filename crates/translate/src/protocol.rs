//! Finding out what is spoken on a Kubernetes Service's port.

use model::Protocol;

/// Ports on which the server speaks first, or that are known to carry bytes: never sniffed.
const BYTES: [u16; 4] = [25, 53, 3306, 27017];

/// Returns the protocol of a port by, in this order: its transport, `appProtocol`, its name up to the first hyphen,
/// and its number. [`Protocol::Unsupported`] means that it is sniffed.
pub fn port_protocol(number: u16, name: &str, transport: &str, app_protocol: Option<&str>) -> Protocol {
    if transport == "UDP" {
        return Protocol::Udp;
    }
    let declared = match app_protocol {
        Some(declared) => match declared {
            "kubernetes.io/h2c" => "http2",
            "kubernetes.io/ws" => "http",
            "kubernetes.io/wss" => "https",
            declared => declared,
        },
        None => name,
    };
    let lower = declared.to_ascii_lowercase();
    if lower.starts_with("grpc-web") {
        return Protocol::GrpcWeb;
    }
    let word = lower.split('-').next().unwrap_or_default();
    match Protocol::parse(word) {
        Protocol::Unsupported if BYTES.contains(&number) => Protocol::Tcp,
        protocol => protocol,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_of_ports() {
        for (number, name, transport, app, protocol) in [
            (80, "http", "TCP", None, Protocol::Http),
            (80, "HTTP-web", "", None, Protocol::Http),
            (80, "http2-x", "TCP", None, Protocol::Http2),
            (80, "grpc-web-x", "TCP", None, Protocol::GrpcWeb),
            (80, "grpc-x", "TCP", None, Protocol::Grpc),
            (80, "web", "TCP", None, Protocol::Unsupported),
            (80, "", "TCP", None, Protocol::Unsupported),
            (80, "httpx", "TCP", None, Protocol::Unsupported),
            (3306, "db", "TCP", None, Protocol::Tcp),
            (3306, "mysql", "TCP", None, Protocol::MySql),
            (80, "http", "UDP", Some("http"), Protocol::Udp),
            (80, "tcp", "TCP", Some("http"), Protocol::Http),
            (80, "tcp", "TCP", Some("kubernetes.io/h2c"), Protocol::Http2),
            (80, "tcp", "TCP", Some("kubernetes.io/ws"), Protocol::Http),
            (80, "tcp", "TCP", Some("kubernetes.io/wss"), Protocol::Https),
            (80, "http", "TCP", Some("example.org/own"), Protocol::Unsupported),
            (80, "http", "SCTP", None, Protocol::Http),
        ] {
            assert_eq!(
                port_protocol(number, name, transport, app),
                protocol,
                "{number} {name} {transport} {app:?}"
            );
        }
    }
}
