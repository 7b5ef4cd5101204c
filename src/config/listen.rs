//! Where to listen for HTTP.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `http.listen`
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub enum Listen {
    /// Nowhere.
    Off,
    /// On the loopback interface, at the first port of [`Listen::PORTS`] that is free.
    Auto,
    /// There, or not at all.
    At(SocketAddr),
}

impl Listen {
    /// Ports that `auto` tries.
    pub const PORTS: std::ops::RangeInclusive<u16> = 9464..=9479;
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "" => Ok(Self::Off),
            "auto" => Ok(Self::Auto),
            address => address
                .parse()
                .map(Self::At)
                .map_err(|_| format!("{address:?} is no address with a port; give one such as 127.0.0.1:9464, \"auto\", or \"\" for none")),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => Ok(()),
            Self::Auto => f.write_str("auto"),
            Self::At(address) => address.fmt(f),
        }
    }
}

impl TryFrom<String> for Listen {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}
