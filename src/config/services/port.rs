//! A port of the machine that leads to one of a service.

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// `[address:]port:container-port[/udp]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Port {
    /// Address of the machine; 127.0.0.1 unless given.
    pub address: IpAddr,
    /// Port there.
    pub host: u16,
    /// Port of the container.
    pub container: u16,
    /// UDP instead of TCP.
    pub udp: bool,
}

impl Port {
    /// `6379/tcp`, as the engine writes it.
    #[must_use]
    pub fn in_container(&self) -> String {
        format!("{}/{}", self.container, if self.udp { "udp" } else { "tcp" })
    }
}

impl TryFrom<String> for Port {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no port; write [address:]port:container-port, with /udp at its end for UDP: \"6379:6379\"");
        let (rest, udp) = match text.rsplit_once('/') {
            Some((rest, "udp")) => (rest, true),
            Some((rest, "tcp")) => (rest, false),
            Some(_) => return Err(wrong()),
            None => (text.as_str(), false),
        };
        let number = |text: &str| text.parse::<u16>().ok().filter(|port| *port > 0).ok_or_else(wrong);
        let (rest, container) = rest.rsplit_once(':').ok_or_else(wrong)?;
        let (address, host) = rest.rsplit_once(':').unwrap_or(("127.0.0.1", rest));
        let address = address.trim_start_matches('[').trim_end_matches(']').parse().map_err(|_| wrong())?;
        Ok(Self { address, host: number(host)?, container: number(container)?, udp })
    }
}

impl From<Port> for String {
    fn from(port: Port) -> Self {
        port.to_string()
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let udp = if self.udp { "/udp" } else { "" };
        write!(f, "{}:{}{udp}", std::net::SocketAddr::new(self.address, self.host), self.container)
    }
}
