//! What carries lanes.

use std::fmt;
use std::str::FromStr;

/// What lanes are made of. Nobody falls back from one to another here: who asks for one gets it, or an error.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Carrier {
    /// TCP connections, with TLS where the peers are to know each other.
    #[default]
    Tcp,
    /// Reliable connections of RDMA, which are neither encrypted nor authenticated.
    Rdma,
}

impl fmt::Display for Carrier {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Carrier::Tcp => "tcp",
            Carrier::Rdma => "rdma",
        })
    }
}

impl FromStr for Carrier {
    type Err = ();

    fn from_str(text: &str) -> Result<Carrier, ()> {
        [Carrier::Tcp, Carrier::Rdma].into_iter().find(|carrier| carrier.to_string() == text).ok_or(())
    }
}
