//! Which congestion control the system is asked to use for what a lane sends.

use std::str::FromStr;
use std::time::Duration;

use crate::error::NetError;
use crate::transport::{
    Closer, LinkKind, PathInfo, Transport, congestion_by_default, congestion_on_offer, try_congestion,
};

/// The longest name that Linux has room for.
const MAX_NAME: usize = 15;

/// Whoever answers faster is near: there, what is lost is back before it is missed, and the system's own choice serves
/// unless it paces ([`instead_nearby`]).
pub(crate) const FAR: Duration = Duration::from_millis(10);

/// What is asked for on paths that are far: one that gives way to others, and one that does not mind losses.
const YIELDING: &str = "cubic";
pub(crate) const FIRM: &str = "bbr";

/// Which congestion control lanes use that send.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Congestion {
    /// CUBIC to a peer that is far, and BBR once what gets lost has shown to be lost at random: there is no queue then in
    /// which others could be harmed. What the system uses to one that is near, unless that is BBR, or where it does not
    /// let this process have those.
    #[default]
    Auto,
    /// CUBIC to a peer that is far, whatever gets lost.
    Yielding,
    /// What the system uses.
    System,
    /// This one.
    Named(String),
}

impl FromStr for Congestion {
    type Err = NetError;

    fn from_str(text: &str) -> Result<Congestion, NetError> {
        match text {
            "auto" => Ok(Congestion::Auto),
            "yielding" => Ok(Congestion::Yielding),
            "system" => Ok(Congestion::System),
            name => {
                let fits =
                    |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-".contains(&byte);
                if name.is_empty() || name.len() > MAX_NAME || !name.bytes().all(fits) {
                    return Err(refused(name));
                }
                Ok(Congestion::Named(name.to_owned()))
            }
        }
    }
}

impl Congestion {
    /// An error when the kernel does not let this process have what is asked for by name.
    pub(crate) fn check(&self) -> Result<(), NetError> {
        match self {
            Congestion::Named(name) if !try_congestion(name) => Err(refused(name)),
            _ => Ok(()),
        }
    }

    /// Whether losses are not to be minded once they have shown to be random.
    pub(crate) fn may_ignore_losses(&self) -> bool {
        *self == Congestion::Auto
    }

    /// Has a connection use it, before data flow, to a peer that is far or near, when losses have shown to be random or
    /// not.
    pub(crate) fn apply(
        &self,
        transport: &mut dyn Transport,
        is_far: bool,
        at_random: bool,
    ) -> Result<(), NetError> {
        match self {
            // There is no congestion but on a network.
            _ if transport.kind() != LinkKind::Tcp => Ok(()),
            Congestion::System => Ok(()),
            Congestion::Auto | Congestion::Yielding => {
                let choice = if !is_far {
                    transport.congestion().as_deref().and_then(instead_nearby)
                } else if at_random && self.may_ignore_losses() {
                    Some(FIRM)
                } else {
                    Some(YIELDING)
                };
                if let Some(choice) = choice
                    && let Err(error) = transport.set_congestion(choice)
                {
                    log::debug!("the system's congestion control it is, {choice} is not to be had: {error}");
                }
                Ok(())
            }
            Congestion::Named(name) => {
                let asked = transport.set_congestion(name);
                // It is not believed but looked at. A route, for one, may have another for all that goes over it.
                let present = transport.congestion();
                if asked.is_ok() && present.as_ref() == Some(name) {
                    return Ok(());
                }
                let offered = present.unwrap_or_default();
                Err(NetError::Congestion { name: name.clone(), offered })
            }
        }
    }
}

impl Congestion {
    /// Has a connection over which data flow use it from now on, to a peer that has become far or near.
    pub(crate) fn refit(&self, lane: &Closer, is_far: bool) {
        if !matches!(self, Congestion::Auto | Congestion::Yielding) {
            return;
        }
        let name = if is_far {
            Some(YIELDING.to_owned())
        } else {
            congestion_by_default().map(|name| instead_nearby(&name).map_or(name, str::to_owned))
        };
        let Some(name) = name.filter(|name| lane.congestion().as_ref() != Some(name)) else { return };
        if let Err(error) = lane.set_congestion(&name) {
            log::debug!("{name} is not to be had: {error}");
        }
    }
}

/// What serves better than `present` to a peer that is near, if anything does.
///
/// BBR paces what it sends by a timer. Where a round trip takes microseconds the timers are what its time goes to, and
/// there is nothing that it could gain: over loopback iperf3 carries twice as much with CUBIC.
fn instead_nearby(present: &str) -> Option<&'static str> {
    (present == FIRM).then_some(YIELDING)
}

/// Whether a connection minds losses that has this congestion control and such a path, and need not.
pub(crate) fn minds_losses(present: Option<&str>, path: Option<&PathInfo>) -> bool {
    present == Some(YIELDING) && path.and_then(|path| path.min_rtt).is_some_and(|time| time >= FAR)
}

/// Whether a connection does not mind losses.
pub(crate) fn ignores_losses(lane: &Closer) -> bool {
    lane.congestion().as_deref() == Some(FIRM)
}

/// Has a connection that yields to others mind no losses, or one that does not yield again. The system may refuse.
///
/// BBR begins with almost three times as much each round trip, from where the connection stands, until no more arrives.
pub(crate) fn ignore_losses(lane: &Closer, on: bool) {
    let (from, to) = if on { (YIELDING, FIRM) } else { (FIRM, YIELDING) };
    if lane.congestion().as_deref() == Some(from)
        && let Err(error) = lane.set_congestion(to)
    {
        log::debug!("{to} is not to be had: {error}");
    }
}

/// Whether the peer may be far, as far as TCP has seen by now.
pub(crate) fn is_far(transport: &dyn Transport) -> bool {
    transport.path().and_then(|path| path.min_rtt).is_none_or(|time| time >= FAR)
}

fn refused(name: &str) -> NetError {
    NetError::Congestion { name: name.to_owned(), offered: congestion_on_offer().join(", ") }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::transport::TcpTransport;

    #[test]
    fn a_peer_that_is_near_is_sent_to_as_the_system_does_but_without_bbr() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let mut transport = TcpTransport::new(stream).unwrap();
        for name in congestion_on_offer() {
            transport.set_congestion(&name).unwrap();
            Congestion::System.apply(&mut transport, false, false).unwrap();
            assert_eq!(transport.congestion().as_ref(), Some(&name));
            let without = if name == FIRM && try_congestion(YIELDING) { YIELDING } else { &name };
            for auto in [Congestion::Auto, Congestion::Yielding] {
                transport.set_congestion(&name).unwrap();
                auto.apply(&mut transport, false, true).unwrap();
                assert_eq!(transport.congestion().as_deref(), Some(without), "{auto:?}");
            }
        }
    }

    #[test]
    fn a_congestion_control_that_the_kernel_does_not_have_is_refused_with_what_it_has() {
        let offered = congestion_on_offer();
        for name in ["no_such", "", "UPPER", "far-too-long-a-name"] {
            let refused = name.parse::<Congestion>().and_then(|named| named.check());
            let told = refused.unwrap_err().to_string();
            assert!(offered.iter().all(|one| told.contains(one.as_str())), "{told}");
        }
        for name in &offered {
            assert!(name.parse::<Congestion>().and_then(|named| named.check()).is_ok(), "{name}");
        }
    }
}
