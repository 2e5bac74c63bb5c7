//! What a controller is told, and what it tells.

use super::Action;

/// A round trip below this many seconds lets hope for a fast link, and is worth waiting for.
const NEAR_S: f64 = 0.01;

/// What an action is expected to make of a block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// Bytes on the wire for each byte of the block.
    pub ratio: f64,
    /// Processor time for compressing, in nanoseconds for each byte of the block.
    pub ns_per_byte: f64,
}

/// What is known of a block before it is decided on.
#[derive(Clone, Copy, Debug)]
pub enum Look<'a> {
    /// A model's estimates, in the order of [`Action::ALL`].
    Predicted(&'a [Estimate; Action::ALL.len()]),
    /// There is no model; a probe takes the block for worth compressing.
    Compressible,
    /// A probe takes it for not worth compressing.
    Incompressible,
    /// Nobody has looked.
    Unseen,
}

/// What led to a decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Reason {
    /// The link is not known yet.
    Start,
    /// The model's estimates for this block, corrected by what the last blocks gave.
    Model,
    /// The means of earlier blocks: there is no model.
    Means,
    /// A probe found nothing to gain in this block.
    Probe,
    /// The last blocks were not worth compressing at this rate of the link, so this one was not looked at.
    Bypass,
    /// To measure what sending everything so would give.
    Trial,
    /// A trial has shown that sending everything so is faster.
    Guard,
}

impl Reason {
    /// All reasons, by number.
    pub const ALL: [Reason; 7] = [
        Reason::Start,
        Reason::Model,
        Reason::Means,
        Reason::Probe,
        Reason::Bypass,
        Reason::Trial,
        Reason::Guard,
    ];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Reason::Start => "start",
            Reason::Model => "model",
            Reason::Means => "means",
            Reason::Probe => "probe",
            Reason::Bypass => "bypass",
            Reason::Trial => "trial",
            Reason::Guard => "guard",
        }
    }
}

/// An action for a block, and why.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Decision {
    /// What to do.
    pub action: Action,
    /// What that is expected to give.
    pub expected: Estimate,
    /// What led to it.
    pub reason: Reason,
    /// Whether `expected` was made from a model's prediction.
    pub predicted: bool,
    /// The phase of the guard, which [`Controller::delivered`] wants back.
    pub phase: u32,
    /// How long it was expected to be on the wire, in bytes.
    pub(super) expected_bytes: f64,
    /// Whether a faster link would make a difference to it.
    pub(super) tells: bool,
}

/// What a block really took. Times are in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Length of the block.
    pub raw_bytes: u64,
    /// Length on the wire.
    pub wire_bytes: u64,
    /// Processor time of looking at the block and encoding it.
    pub encode_cpu_s: f64,
    /// Processor time of writing it to the socket, encryption included.
    pub write_cpu_s: f64,
    /// Processor time of everything, the two above and reading and digesting included.
    pub cpu_s: f64,
    /// Time that the parts took in which nothing but a processor was waited for.
    pub busy_wall_s: f64,
    /// Processor time of those parts.
    pub busy_cpu_s: f64,
    /// Time that writing took.
    pub write_wall_s: f64,
    /// Time in which the lane could have gone on but for want of a processor, where the system tells.
    pub delay_s: Option<f64>,
    /// Time since the same lane's last block, or since it had work.
    pub cycle_s: f64,
}

/// A block that the peer has acknowledged. Times are in seconds.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Delivery {
    /// Length of the block.
    pub raw_bytes: u64,
    /// Length on the wire.
    pub wire_bytes: u64,
    /// What [`Controller::sending`] told of it.
    pub ahead_bytes: f64,
    /// Its decision's phase.
    pub phase: u32,
    /// From the begin of its writing to the acknowledgement.
    pub since_s: f64,
    /// The least that it can have been under way after it was written.
    pub latency_s: f64,
    /// When it was acknowledged.
    pub at_s: f64,
}

/// What was found out about a link.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KnownLink {
    /// What it carries, in bytes a second.
    pub bytes_per_s: f64,
    /// Whether everything waited for it at some time, so that it carries no more.
    pub was_limit: bool,
}

/// Where a controller works.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Settings {
    /// Lanes that encode and write at the same time.
    pub lanes: u32,
    /// Processors that there are for them.
    pub cores: u32,
    /// The time of a round trip, as far as it is known.
    pub round_trip_s: Option<f64>,
    /// Whether the receiver works on the same machine.
    pub is_local: bool,
    /// What the lanes together may send, in bytes a second, where that is bounded.
    pub limit_bytes_per_s: Option<f64>,
    /// What an earlier session has found out about the link.
    pub known: Option<KnownLink>,
}

impl Settings {
    /// Whether an acknowledgement comes soon enough to be waited for.
    pub(super) fn is_near(&self) -> bool {
        self.round_trip_s.is_some_and(|time| time < NEAR_S)
    }

    /// Whether most of what has no acknowledgement is only on its way.
    pub(super) fn is_far(&self) -> bool {
        self.round_trip_s.is_some_and(|time| time >= NEAR_S)
    }
}
