//! Carries streams between Unix sockets of two machines: the migration of a running machine, and what goes with it.
//!
//! The side that dials is where streams are opened: whoever connects to one of its sockets has a connection made at the
//! other side to the socket of the same channel. Both directions of each stream are carried in records over all lanes.

mod base;
mod pool;
mod report;
mod shared;
mod source;
mod streams;
mod target;
mod watch;
mod worker;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use dwcp_codec::Codec;
use dwcp_proto::frame::ErrorCode;
use dwcp_proto::limits::MAX_CHANNEL;

pub(crate) use base::Base;
pub use report::{RelayReport, RelayTick};
pub use source::SourceRelay;
pub(crate) use target::Relayed;
pub use target::TargetRelay;

use crate::congestion::Congestion;
use crate::error::NetError;
use crate::lanes::LaneRange;
use crate::send::{CodecChoice, check_lanes};

/// The channel whose streams are looked into for pages.
pub const MIGRATION: &str = "migration";

/// How a relay works.
#[derive(Clone, Debug)]
pub struct RelayOptions {
    /// The channels: name, and the Unix socket where the side that dials listens, or to which the other connects.
    pub channels: Vec<(String, PathBuf)>,
    /// Connections to use, as far as the other side allows.
    pub lanes: u16,
    /// Between which numbers of connections to choose to a peer that is far.
    pub adaptive: Option<LaneRange>,
    /// How records are compressed.
    pub codec: CodecChoice,
    /// Bytes of pages that each side holds of a stream; what the side that dials says counts.
    pub cache_bytes: u64,
    /// The most of those that the listening side agrees to.
    pub max_cache_bytes: u64,
    /// The listening side: a directory with an earlier copy of the machine.
    pub base: Option<PathBuf>,
    /// The side that dials: of how much of the other's base it holds the digests, which take about 50 bytes a page.
    pub max_base_bytes: u64,
    /// A directory for what was last sent of each page.
    pub keep: Option<PathBuf>,
    /// A lane on which the peer is silent for this long is lost.
    pub idle_timeout: Duration,
    /// How long making a lane may take, and connecting to a socket of a channel.
    pub connect_timeout: Duration,
    /// How long a session without a lane waits for one.
    pub reconnect_for: Duration,
    /// What all lanes together send, in bytes a second, to begin with.
    pub bandwidth_limit: Option<u64>,
    /// Which congestion control the lanes use.
    pub congestion: Congestion,
}

impl Default for RelayOptions {
    fn default() -> RelayOptions {
        RelayOptions {
            channels: Vec::new(),
            lanes: 4,
            adaptive: None,
            codec: CodecChoice::Fixed(Codec::None),
            cache_bytes: 256 << 20,
            max_cache_bytes: 4 << 30,
            base: None,
            max_base_bytes: u64::MAX,
            keep: None,
            idle_timeout: Duration::from_secs(30),
            connect_timeout: Duration::from_secs(10),
            reconnect_for: Duration::from_secs(10),
            bandwidth_limit: None,
            congestion: Congestion::Auto,
        }
    }
}

impl RelayOptions {
    fn check(&self) -> Result<(), NetError> {
        check_lanes(self.lanes, self.adaptive)?;
        self.congestion.check()?;
        for (name, _) in &self.channels {
            if name.is_empty() || name.len() > MAX_CHANNEL {
                let (option, range) = ("the length of the name of a channel", "1 to 32 bytes");
                return Err(NetError::Option { name: option, value: name.len() as u64, range });
            }
        }
        Ok(())
    }

    /// Reads the base, if there is one.
    pub(crate) fn open_base(&self) -> Result<Option<Arc<Base>>, NetError> {
        self.check()?;
        let Some(base) = &self.base else { return Ok(None) };
        let (read, written) =
            (base.canonicalize().ok(), self.keep.as_ref().and_then(|keep| keep.canonicalize().ok()));
        if read.is_some() && read == written {
            let reason = "the base is not to be written over while it is read".to_owned();
            return Err(NetError::Relay { code: ErrorCode::Refused, reason });
        }
        Ok(Some(Arc::new(Base::open(base)?)))
    }

    /// The socket of a channel.
    fn socket(&self, channel: &str) -> Option<&PathBuf> {
        self.channels.iter().find(|(name, _)| name == channel).map(|(_, path)| path)
    }
}
