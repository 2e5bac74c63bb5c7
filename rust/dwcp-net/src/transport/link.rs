//! What can carry the bytes of a lane.

use std::fmt;

/// What carries the bytes of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkKind {
    /// TCP, with or without TLS.
    #[default]
    Tcp,
    /// Memory that two processes of one user on one host share.
    Shm,
    /// Reliable connections of RDMA, which are neither encrypted nor authenticated.
    Rdma,
}

impl fmt::Display for LinkKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            LinkKind::Tcp => "tcp",
            LinkKind::Shm => "shm",
            LinkKind::Rdma => "rdma",
        })
    }
}
