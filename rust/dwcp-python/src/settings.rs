//! Options as Python hands them over: plain dictionaries, checked there.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use dwcp_codec::select::KnownLink;
use dwcp_net::{CodecChoice, Distance, FetchOptions, LaneRange, LinkKind, SendOptions};
use dwcp_proto::Limits;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

use crate::dictionary::Dictionary;
use crate::error::Failure;
use crate::select::SelectorModel;

/// How to send.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct SendSettings {
    /// Connections to use.
    pub lanes: u16,
    /// Fewest, first and most connections to a receiver that is far, if their number is to be found.
    pub adaptive: Option<(u16, u16, u16)>,
    /// Whether the receiver is taken to be far, or near; none leaves that to the handshake.
    pub far: Option<bool>,
    /// Block length in bytes.
    pub block_bytes: u32,
    /// Codec by name, or `auto`.
    pub codec: String,
    /// What short blocks have in common.
    pub dictionary: Option<Py<Dictionary>>,
    /// What predicts for `auto`; without it `auto` goes by what earlier blocks gave.
    pub codec_model: Option<Py<SelectorModel>>,
    /// What an earlier session has found out about the link: bytes a second, and whether everything waited for it.
    pub known_link: Option<(f64, bool)>,
    /// Silence that a lane may last, in seconds.
    pub idle_timeout_s: f64,
    /// Time for a handshake, in seconds.
    pub connect_timeout_s: f64,
    /// Time to look for a lost receiver, in seconds.
    pub reconnect_s: f64,
    /// Time for a transfer, in seconds.
    pub timeout_s: Option<f64>,
    /// Time for which nothing of a transfer may move, in seconds.
    pub stall_timeout_s: Option<f64>,
    /// Whether the receiver may use what it has.
    pub base_allowed: bool,
    /// Most bytes per second.
    pub bandwidth_bytes_per_s: Option<u64>,
    /// Socket buffers in bytes.
    pub socket_buffer_bytes: Option<u32>,
    /// Congestion control by name, `auto` or `system`.
    pub congestion: String,
    /// Addresses of this machine to connect from.
    pub local_addresses: Vec<String>,
    /// What may carry lanes, in the order in which it is tried.
    pub links: Vec<String>,
}

impl SendSettings {
    /// The same as the native side takes it.
    pub fn options(self, py: Python<'_>) -> PyResult<SendOptions> {
        let codec = codec_choice(py, &self.codec, self.codec_model)?;
        Ok(SendOptions {
            lanes: self.lanes,
            adaptive: self.adaptive.map(range),
            distance: distance(self.far),
            block_bytes: self.block_bytes,
            codec,
            dictionary: self.dictionary.map(|dictionary| Arc::clone(dictionary.get().shared())),
            known_link: self.known_link.map(|(bytes_per_s, was_limit)| KnownLink { bytes_per_s, was_limit }),
            idle_timeout: seconds(self.idle_timeout_s)?,
            connect_timeout: seconds(self.connect_timeout_s)?,
            reconnect_for: seconds(self.reconnect_s)?,
            total_timeout: self.timeout_s.map(seconds).transpose()?,
            stall_timeout: self.stall_timeout_s.map(seconds).transpose()?,
            base_allowed: self.base_allowed,
            bandwidth_limit: self.bandwidth_bytes_per_s,
            socket_buffer_bytes: self.socket_buffer_bytes,
            local_addresses: addresses(&self.local_addresses)?,
            links: links(&self.links)?,
            congestion: self.congestion.parse().map_err(|error| Failure::Connect(error).raise(py))?,
        })
    }
}

/// How to fetch.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct FetchSettings {
    /// Connections to use.
    pub lanes: u16,
    /// Fewest, first and most connections to a listener that is far, if their number is to be found.
    pub adaptive: Option<(u16, u16, u16)>,
    /// Whether the listener is taken to be far, or near; none leaves that to the handshake.
    pub far: Option<bool>,
    /// Longest block in bytes.
    pub max_block_bytes: u32,
    /// Most entries of a transfer.
    pub max_entries: u32,
    /// Longest object in bytes.
    pub max_object_bytes: u64,
    /// Longest dictionary in bytes.
    pub max_dictionary_bytes: u32,
    /// Dictionaries that are known.
    pub dictionaries: Vec<Py<Dictionary>>,
    /// Silence that a lane may last, in seconds.
    pub idle_timeout_s: f64,
    /// Time for a handshake, in seconds.
    pub connect_timeout_s: f64,
    /// Time to look for a lost listener, in seconds.
    pub reconnect_s: f64,
    /// Time for a fetch, in seconds.
    pub timeout_s: Option<f64>,
    /// Addresses of this machine to connect from.
    pub local_addresses: Vec<String>,
    /// What may carry lanes, in the order in which it is tried.
    pub links: Vec<String>,
}

impl FetchSettings {
    /// The same as the native side takes it.
    pub fn options(self) -> PyResult<FetchOptions> {
        let limits = Limits {
            max_block: self.max_block_bytes,
            max_entries: self.max_entries,
            max_object: self.max_object_bytes,
            max_dictionary: self.max_dictionary_bytes,
            ..Limits::default()
        };
        Ok(FetchOptions {
            lanes: self.lanes,
            adaptive: self.adaptive.map(range),
            distance: distance(self.far),
            limits,
            dictionaries: shared(&self.dictionaries),
            idle_timeout: seconds(self.idle_timeout_s)?,
            connect_timeout: seconds(self.connect_timeout_s)?,
            reconnect_for: seconds(self.reconnect_s)?,
            total_timeout: self.timeout_s.map(seconds).transpose()?,
            local_addresses: addresses(&self.local_addresses)?,
            links: links(&self.links)?,
        })
    }
}

/// How to receive.
#[derive(FromPyObject)]
#[pyo3(from_item_all)]
pub struct ReceiveSettings {
    /// Most lanes of a session.
    pub max_lanes: u16,
    /// Longest block in bytes.
    pub max_block_bytes: u32,
    /// Most entries of a transfer.
    pub max_entries: u32,
    /// Longest object in bytes.
    pub max_object_bytes: u64,
    /// Longest dictionary in bytes.
    pub max_dictionary_bytes: u32,
    /// Dictionaries that are known.
    pub dictionaries: Vec<Py<Dictionary>>,
    /// Silence that a lane may last, in seconds.
    pub idle_timeout_s: f64,
    /// Time for a handshake, in seconds.
    pub handshake_timeout_s: f64,
    /// Whether senders are let in.
    pub senders: bool,
    /// Most sessions at once.
    pub max_sessions: usize,
    /// Networks whose peers may use v1.
    pub v1_networks: Vec<String>,
    /// Whether processes of the same user on this host may share memory with this one.
    pub shares_memory: bool,
    /// Whether connections over RDMA are taken too.
    pub rdma: bool,
}

/// Dictionaries as the native side keeps them.
pub fn shared(dictionaries: &[Py<Dictionary>]) -> Arc<[Arc<dwcp_codec::Dictionary>]> {
    dictionaries.iter().map(|dictionary| Arc::clone(dictionary.get().shared())).collect()
}

/// How to compress, from the name of a codec, or `auto` with what predicts for it.
pub fn codec_choice(py: Python<'_>, codec: &str, model: Option<Py<SelectorModel>>) -> PyResult<CodecChoice> {
    if codec == "auto" {
        return Ok(CodecChoice::Auto { model: model.map(|model| model.get().shared()) });
    }
    Ok(CodecChoice::Fixed(codec.parse().map_err(|error| Failure::Codec(error).raise(py))?))
}

/// Between which numbers of lanes to choose.
pub fn range((least, start, most): (u16, u16, u16)) -> LaneRange {
    LaneRange { least, start, most }
}

/// How far the peer is taken to be.
pub fn distance(far: Option<bool>) -> Distance {
    match far {
        None => Distance::Measured,
        Some(false) => Distance::Near,
        Some(true) => Distance::Far,
    }
}

/// Addresses from text; what Python checked does not fail.
pub fn addresses(texts: &[String]) -> PyResult<Vec<IpAddr>> {
    let read = |text: &String| {
        text.parse().map_err(|error| PyValueError::new_err(format!("the address {text:?}: {error}")))
    };
    texts.iter().map(read).collect()
}

/// What may carry lanes, by name; what Python checked does not fail.
pub fn links(names: &[String]) -> PyResult<Vec<LinkKind>> {
    let read = |name: &String| match name.as_str() {
        "tcp" => Ok(LinkKind::Tcp),
        "shm" => Ok(LinkKind::Shm),
        "rdma" => Ok(LinkKind::Rdma),
        _ => Err(PyValueError::new_err(format!("{name:?} carries no lanes"))),
    };
    names.iter().map(read).collect()
}

/// A time span from seconds; what Python checked does not fail.
pub fn seconds(value: f64) -> PyResult<Duration> {
    Duration::try_from_secs_f64(value)
        .map_err(|error| PyValueError::new_err(format!("{value} seconds: {error}")))
}
