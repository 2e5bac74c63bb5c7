//! What can go wrong with RDMA.

use std::io;
use std::time::Duration;

/// Why there is no connection, or no longer one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// This machine has no device.
    #[error("this machine has no rdma device: /sys/class/infiniband names none")]
    NoDevice,
    /// A library is not installed, or not fit.
    #[error("rdma needs {library}, which cannot be used: {reason}")]
    Library {
        /// Its file name.
        library: &'static str,
        /// What the loader says.
        reason: String,
    },
    /// The devices belong to another process.
    #[error("rdma was opened by process {owner} before a fork, and cannot be used in its children")]
    Forked {
        /// The process that has opened them.
        owner: u32,
    },
    /// The system has no more memory that it can lock for the device.
    #[error(
        "cannot register {bytes} bytes of memory with the rdma device, this process may lock {limit}: {source}"
    )]
    Memory {
        /// What was asked for.
        bytes: usize,
        /// RLIMIT_MEMLOCK, in words.
        limit: String,
        /// What the system says.
        source: io::Error,
    },
    /// A device has less than a connection needs.
    #[error("the rdma device has {what} {has}, at least {needs} are needed")]
    Limit {
        /// Which limit, by its name in the verbs.
        what: &'static str,
        /// The least that is of use.
        needs: u64,
        /// What the device says it has.
        has: u64,
    },
    /// A call has failed.
    #[error("{call} failed: {source}")]
    Call {
        /// Its name.
        call: &'static str,
        /// What it says.
        source: io::Error,
    },
    /// No connection was made.
    #[error("no rdma connection: {event} (status {status})")]
    Refused {
        /// What rdma_cm has told instead.
        event: &'static str,
        /// Its number for why.
        status: i32,
    },
    /// The other side is none of ours.
    #[error("the rdma peer does not greet as dwcp does: {reason}")]
    Greeting {
        /// What is wrong with the greeting.
        reason: &'static str,
    },
    /// The peer breaks the rules of the stream.
    #[error("the rdma peer breaks the rules: {reason}")]
    Rule {
        /// Which.
        reason: &'static str,
    },
    /// A work request has failed, and with it the connection.
    #[error("an rdma request has failed: {status}")]
    Completion {
        /// The status, by its name in the verbs.
        status: &'static str,
    },
    /// The device was taken away.
    #[error("the rdma device was taken away")]
    DeviceRemoved,
    /// The peer has ended the connection, or is gone.
    #[error("the rdma peer has disconnected")]
    Disconnected,
    /// This side has ended the connection.
    #[error("the rdma connection was shut by this side")]
    Shut,
    /// Something took too long.
    #[error("{what} took longer than {} s", after.as_secs_f64())]
    Deadline {
        /// What was waited for.
        what: &'static str,
        /// The limit.
        after: Duration,
    },
}

impl RdmaError {
    /// What the last call of a C library has left as the reason.
    pub(crate) fn last(call: &'static str) -> RdmaError {
        RdmaError::Call { call, source: io::Error::last_os_error() }
    }

    /// The failure of the system call behind `call`.
    pub(crate) fn errno(call: &'static str, errno: rustix::io::Errno) -> RdmaError {
        RdmaError::Call { call, source: errno.into() }
    }
}

/// How much memory this process may lock, in words.
pub(crate) fn memory_lock_limit() -> String {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    limit.map_or("any number of bytes".to_owned(), |bytes| format!("{bytes} bytes"))
}
