//! How far the peer is, or is taken to be.

use std::time::Duration;

use crate::lanes::LaneRange;

/// How far the peer is taken to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Distance {
    /// As far as the handshake of each lane shows.
    #[default]
    Measured,
    /// So near that neither the number of lanes nor the congestion control matters.
    Near,
    /// So far that both do.
    Far,
}

impl Distance {
    /// Whether the peer is far, where `measured` is what a handshake has shown.
    pub(crate) fn is_far(self, measured: bool) -> bool {
        match self {
            Distance::Measured => measured,
            Distance::Near => false,
            Distance::Far => true,
        }
    }
}

/// What a session is to go by from now on, since the way to the peer has become another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Between which numbers to find that of the lanes; fixed where all are the same.
    pub lanes: LaneRange,
    /// How far the peer is.
    pub distance: Distance,
    /// How long a round trip takes.
    pub round_trip: Duration,
}
