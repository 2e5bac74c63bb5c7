//! Native failures as the exceptions of `dwcp_fast.errors`.

use std::io;
use std::path::Path;

use dwcp_codec::select::{ModelError, UnknownAction};
use dwcp_codec::{CodecError, PatchError};
use dwcp_net::NetError;
use dwcp_proto::error::{ProtoError, SessionError};
use dwcp_proto::frame::ErrorCode;
use dwcp_store::StoreError;
use pyo3::exceptions::{PyBufferError, PyFileExistsError, PyMemoryError, PyOSError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyDict;

/// Whatever can end native work.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// Bytes of a codec or container.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// A name that is no action.
    #[error(transparent)]
    Action(#[from] UnknownAction),
    /// Bytes of a patch, or what it was to be applied to.
    #[error(transparent)]
    Patch(#[from] PatchError),
    /// Bytes of a selector model.
    #[error(transparent)]
    Model(#[from] ModelError),
    /// Features that are not as many as there are.
    #[error("{given} features are given, {needed} are needed")]
    Features {
        /// How many are needed.
        needed: usize,
        /// How many are given.
        given: usize,
    },
    /// A transfer.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The first contact with a receiver: nothing was sent that could be resumed.
    #[error(transparent)]
    Connect(NetError),
    /// What is to be sent, before anything was sent.
    #[error(transparent)]
    Source(StoreError),
    /// A thread could not be started.
    #[error("cannot start a thread: {0}")]
    Thread(#[from] io::Error),
    /// The caller wished to stop.
    #[error("cancelled")]
    Cancelled,
    /// The object was closed.
    #[error("this session was closed")]
    Closed,
    /// The object belongs to another process.
    #[error("made by process {owner} before a fork: its threads and sockets do not exist in this one")]
    Forked {
        /// The process that made it.
        owner: u32,
    },
    /// Kept tokens that cannot be read.
    #[error("kept tokens of {length} bytes cannot be read")]
    Tickets {
        /// Their length in bytes.
        length: usize,
    },
    /// A buffer of the caller's is too short.
    #[error("output buffer of {given} bytes is too small: {needed} bytes are needed")]
    TooSmall {
        /// Length needed in bytes.
        needed: usize,
        /// Length of the buffer in bytes.
        given: usize,
    },
    /// More bytes than the caller allows.
    #[error("{length} bytes are promised, over the limit of {limit}")]
    OverLimit {
        /// What is promised, in bytes.
        length: u64,
        /// The limit in bytes.
        limit: u64,
    },
    /// Memory that somebody looks at would have to move.
    #[error("a view of the {held} bytes held exists, so that they cannot become {wanted}")]
    Viewed {
        /// Bytes held.
        held: u64,
        /// Bytes to be held.
        wanted: u64,
    },
    /// What is to be read is a view of what is to be changed.
    #[error("a view of the version that is to be changed cannot be what it is changed by")]
    OwnView,
    /// A mutable buffer was written to by somebody else during the call.
    #[error("the buffer was changed while it was being read")]
    Changed,
    /// A bug of ours.
    #[error("internal error, please report it: {0}")]
    Panic(String),
}

// What POSIX systems number these; Python turns the number into the class.
const ENOSPC: i32 = 28;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;

/// What an exception is made of, beside its text.
struct Shape {
    class: &'static str,
    /// A stable name where the class has none of its own.
    code: Option<&'static str>,
    hint: Option<&'static str>,
    resumable: bool,
    /// Whether the same call may succeed later, where the class does not say so of all its kind.
    retryable: bool,
}

const fn class(class: &'static str) -> Shape {
    Shape { class, code: None, hint: None, resumable: false, retryable: false }
}

const fn named(code: &'static str) -> Shape {
    Shape { class: "DwcpError", code: Some(code), hint: None, resumable: false, retryable: false }
}

impl Shape {
    fn hint(self, hint: &'static str) -> Shape {
        Shape { hint: Some(hint), ..self }
    }

    fn resumable(self, resumable: bool) -> Shape {
        Shape { resumable, ..self }
    }

    fn retryable(self, retryable: bool) -> Shape {
        Shape { retryable, ..self }
    }
}

impl Failure {
    /// Make the exception.
    pub fn raise(self, py: Python<'_>) -> PyErr {
        if let Some(error) = self.builtin(py) {
            return error;
        }
        let text = self.to_string();
        exception(py, &text, &self.shape())
    }

    /// Failures that have an exception of Python's own.
    fn builtin(&self, py: Python<'_>) -> Option<PyErr> {
        let memory = || Some(PyMemoryError::new_err(self.to_string()));
        match self {
            Failure::Thread(source) => Some(os_error(py, source, None)),
            Failure::Viewed { .. } => Some(PyBufferError::new_err(self.to_string())),
            Failure::OwnView => Some(PyValueError::new_err(self.to_string())),
            Failure::Codec(CodecError::OutOfMemory { .. }) => memory(),
            Failure::Patch(PatchError::OutOfMemory { .. }) => memory(),
            Failure::Source(error) | Failure::Net(NetError::Store(error)) => store_error(py, error),
            Failure::Net(NetError::Io { source, .. }) | Failure::Connect(NetError::Io { source, .. }) => {
                if is_lost(source) {
                    None
                } else {
                    Some(os_error(py, source, None))
                }
            }
            _ => None,
        }
    }

    fn shape(&self) -> Shape {
        match self {
            Failure::Codec(error) => class(codec_class(error)),
            Failure::Patch(error) => class(patch_class(error)),
            Failure::Model(error) => class(model_class(error)),
            Failure::Features { .. } => class("ConfigError"),
            Failure::Net(error) => net_shape(error),
            Failure::Connect(error) => net_shape(error).resumable(false),
            Failure::Source(error) => store_shape(error),
            Failure::TooSmall { .. } | Failure::Tickets { .. } | Failure::Action(_) => class("ConfigError"),
            Failure::OverLimit { .. } => class("LimitExceededError"),
            Failure::Changed => class("IntegrityError"),
            Failure::Viewed { .. } | Failure::OwnView => named("viewed"),
            Failure::Cancelled => named("cancelled"),
            Failure::Closed => class("ClosedError"),
            Failure::Forked { .. } => named("forked").hint("connect or listen again in the child"),
            Failure::Panic(_) => named("internal"),
            Failure::Thread(_) => named("system"),
        }
    }
}

/// The class for what is wrong with coded bytes or the name of a codec.
fn codec_class(error: &CodecError) -> &'static str {
    match error {
        CodecError::UnknownCodecName { .. } | CodecError::LevelOutOfRange { .. } => "ConfigError",
        CodecError::AccelerationOutOfRange { .. } | CodecError::NoPlanes { .. } => "ConfigError",
        CodecError::OutputTooSmall { .. } | CodecError::DictionaryCodec { .. } => "ConfigError",
        CodecError::Training { .. } | CodecError::Page { .. } => "ConfigError",
        CodecError::DictionaryMissing { .. } | CodecError::DictionaryMismatch { .. } => "BaseMismatchError",
        CodecError::UnknownCodecId { .. }
        | CodecError::UnknownBlockKind { .. }
        | CodecError::UnsupportedVersion { .. } => "UnsupportedFormatError",
        CodecError::InputTooLarge { .. } | CodecError::OverLimit { .. } => "LimitExceededError",
        CodecError::DigestMismatch { .. } => "IntegrityError",
        _ => "FormatError",
    }
}

fn model_class(error: &ModelError) -> &'static str {
    match error {
        ModelError::UnsupportedVersion { .. } | ModelError::Name { .. } => "UnsupportedFormatError",
        ModelError::DigestMismatch { .. } => "IntegrityError",
        ModelError::TooLong { .. } => "LimitExceededError",
        _ => "FormatError",
    }
}

fn patch_class(error: &PatchError) -> &'static str {
    match error {
        PatchError::BaseMismatch { .. }
        | PatchError::BaseSize { .. }
        | PatchError::DictionaryMissing { .. }
        | PatchError::DictionaryMismatch { .. } => "BaseMismatchError",
        PatchError::SizeChanged { .. }
        | PatchError::Length { .. }
        | PatchError::NoSuchElement { .. }
        | PatchError::DuplicateElement { .. } => "DeltaError",
        PatchError::Check { .. } | PatchError::TargetDigest { .. } | PatchError::BlockMismatch { .. } => {
            "IntegrityError"
        }
        PatchError::UnsupportedVersion { .. } | PatchError::UnknownKind { .. } => "UnsupportedFormatError",
        PatchError::TooManyBlocks { .. } | PatchError::Size { .. } => "LimitExceededError",
        PatchError::OutOfMemory { .. } => "MemoryError",
        PatchError::Codec { source, .. } => codec_class(source),
        _ => "FormatError",
    }
}

/// Make the `OSError` subclass for what the system said, with `errno` and `filename`.
pub fn os_error(py: Python<'_>, source: &io::Error, path: Option<&Path>) -> PyErr {
    let Some(code) = source.raw_os_error() else {
        let text = path.map_or_else(|| source.to_string(), |path| format!("{}: {source}", path.display()));
        return PyOSError::new_err(text);
    };
    let text = || py.import("os")?.call_method1("strerror", (code,))?.extract::<String>();
    let text = text().unwrap_or_else(|_| source.to_string());
    match path {
        Some(path) => PyOSError::new_err((code, text, path.as_os_str().to_owned())),
        None => PyOSError::new_err((code, text)),
    }
}

/// Whether the system says that a connection is gone, not that it could not be made or used.
fn is_lost(source: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(source.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

fn net_shape(error: &NetError) -> Shape {
    let shape = match error {
        NetError::Io { .. } | NetError::PeerClosed { .. } => class("PeerClosedError"),
        NetError::Unreachable { .. } => {
            class("TransportError").hint("check that the other side is running and the address is right")
        }
        NetError::Tls { .. } => class("TransportError"),
        NetError::Link { .. } => class("TransportError")
            .hint("`dwcp doctor` says what of RDMA there is; over TCP it needs none of that"),
        NetError::Auth { .. } => class("AuthError"),
        NetError::Integrity { .. } => class("IntegrityError"),
        NetError::Proto(error) => class(proto_class(error)),
        NetError::Session(error) => session_shape(error),
        NetError::Store(error) => store_shape(error),
        NetError::Codec(error) => class(codec_class(error)),
        NetError::Vm(_) => class("IntegrityError"),
        NetError::Relay { code, .. } => relay_shape(*code),
        NetError::Deadline { .. } => class("DeadlineError"),
        NetError::Cancelled => named("cancelled"),
        NetError::Closed => class("ClosedError"),
        NetError::Peer { code, retryable, .. } => peer_shape(*code).retryable(*retryable),
        NetError::Version { .. } => class("NegotiationError"),
        NetError::NotAsked
        | NetError::Nested
        | NetError::Address { .. }
        | NetError::Pairing { .. }
        | NetError::Network { .. }
        | NetError::Identity { .. }
        | NetError::Pem { .. }
        | NetError::Congestion { .. }
        | NetError::LocalAddress { .. }
        | NetError::Option { .. } => class("ConfigError"),
        _ => class("DwcpError"),
    };
    // Altered bytes are told by their own exit code: to go on as if nothing was is not what the user should do.
    let resumable = error.resumable() && shape.class != "IntegrityError";
    shape.resumable(resumable)
}

fn proto_class(error: &ProtoError) -> &'static str {
    match error.code() {
        ErrorCode::Unsupported => "NegotiationError",
        ErrorCode::Limit => "LimitExceededError",
        ErrorCode::Integrity => "IntegrityError",
        _ => "FormatError",
    }
}

fn session_shape(error: &SessionError) -> Shape {
    match error {
        SessionError::Proto(error) => class(proto_class(error)),
        SessionError::Peer { code, .. } => peer_shape(*code),
        SessionError::DigestMismatch { .. }
        | SessionError::TransferDigest
        | SessionError::DictionaryDigest { .. } => class("IntegrityError"),
        SessionError::SourceChanged { .. } => named("source-changed"),
        _ => class("FormatError"),
    }
}

fn peer_shape(code: ErrorCode) -> Shape {
    match code {
        ErrorCode::Format => class("FormatError"),
        ErrorCode::Auth => class("AuthError"),
        ErrorCode::Integrity => class("IntegrityError"),
        ErrorCode::Limit => class("LimitExceededError"),
        ErrorCode::Unsupported => class("NegotiationError"),
        ErrorCode::BaseMismatch => class("BaseMismatchError"),
        ErrorCode::Deadline => class("DeadlineError"),
        _ => class("PeerError"),
    }
}

/// The failure of a relay on this side.
fn relay_shape(code: ErrorCode) -> Shape {
    match code {
        ErrorCode::Cancelled => named("cancelled"),
        ErrorCode::Refused => class("ConfigError"),
        ErrorCode::Internal => class("TransportError"),
        code => peer_shape(code),
    }
}

fn store_shape(error: &StoreError) -> Shape {
    match error {
        StoreError::SourceChanged { .. } => named("source-changed"),
        StoreError::Patch(error) => class(patch_class(error)),
        StoreError::Unfinished { .. } => {
            class("DeltaError").hint("dwcp delta recover FILE finishes the change, or takes it back")
        }
        StoreError::Journal { .. } => class("IntegrityError"),
        StoreError::Refused { .. } => named("refused"),
        StoreError::Limit { .. } => class("LimitExceededError"),
        StoreError::Cancelled => named("cancelled").resumable(true),
        StoreError::Manifest(error) if error.code() == ErrorCode::Limit => class("LimitExceededError"),
        StoreError::Manifest(_) => class("ConfigError"),
        _ => class("DwcpError"),
    }
}

/// Failures of files as the `OSError` that Python's own functions would raise.
fn store_error(py: Python<'_>, error: &StoreError) -> Option<PyErr> {
    let numbered = |number: i32, path: Option<&Path>| {
        let path = path.map(|path| path.as_os_str().to_owned());
        PyOSError::new_err((number, error.to_string(), path))
    };
    match error {
        StoreError::Io { path, source, .. } => Some(os_error(py, source, Some(path))),
        StoreError::Exists { path } => {
            let text = "exists and is not to be overwritten";
            Some(PyFileExistsError::new_err((EEXIST, text, path.as_os_str().to_owned())))
        }
        StoreError::NoSpace { .. } => Some(numbered(ENOSPC, None)),
        StoreError::Busy { path } => Some(numbered(EBUSY, Some(path))),
        StoreError::OutOfMemory { .. } | StoreError::Patch(PatchError::OutOfMemory { .. }) => {
            Some(PyMemoryError::new_err(error.to_string()))
        }
        _ => None,
    }
}

/// Make an exception of `dwcp_fast.errors`.
fn exception(py: Python<'_>, text: &str, shape: &Shape) -> PyErr {
    static ERRORS: PyOnceLock<Py<PyModule>> = PyOnceLock::new();
    let make = || -> PyResult<PyErr> {
        let errors = ERRORS.get_or_try_init(py, || py.import("dwcp_fast.errors").map(Bound::unbind))?;
        let arguments = PyDict::new(py);
        arguments.set_item("hint", shape.hint)?;
        arguments.set_item("resumable", shape.resumable)?;
        let made = errors.bind(py).getattr(shape.class)?.call((text,), Some(&arguments))?;
        if let Some(code) = shape.code {
            made.setattr("code", code)?;
        }
        if shape.retryable {
            made.setattr("retryable", true)?;
        }
        Ok(PyErr::from_value(made))
    };
    make().unwrap_or_else(|error| error)
}
