//! Slows those down who show wrong tokens, and nobody else.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

/// This many wrong tokens are answered at full speed: from one network, and from everywhere together.
const FREE_OF_ONE: u32 = 10;
const FREE_OF_ALL: u32 = 100;

/// After this time without another, one wrong token is forgotten.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// The first delay, which doubles with each wrong token, and the longest.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(4);

/// Networks that are remembered.
const MAX_NETWORKS: usize = 1024;

/// Whoever has one of these addresses is taken to have them all: an IPv4 address, or 2^64 IPv6 addresses.
pub(crate) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Wrong tokens that are not forgotten yet.
#[derive(Clone, Copy, Debug)]
struct Strikes {
    count: u32,
    since: Instant,
}

impl Strikes {
    fn none(now: Instant) -> Strikes {
        Strikes { count: 0, since: now }
    }

    fn at(self, now: Instant) -> Strikes {
        let slices = now.saturating_duration_since(self.since).as_secs() / FORGOTTEN_AFTER.as_secs();
        match self.count.saturating_sub(u32::try_from(slices).unwrap_or(u32::MAX)) {
            0 => Strikes::none(now),
            // What is left of the time that was begun counts for the next.
            count => Strikes { count, since: self.since + FORGOTTEN_AFTER.saturating_mul(slices as u32) },
        }
    }

    fn add(&mut self, now: Instant) {
        *self = self.at(now);
        self.count = self.count.saturating_add(1);
    }

    fn delay(self, free: u32) -> Duration {
        match self.count.saturating_sub(free) {
            0 => Duration::ZERO,
            excess => FIRST_DELAY.saturating_mul(1 << (excess - 1).min(10)).min(MAX_DELAY),
        }
    }
}

/// Who has shown wrong tokens lately.
#[derive(Debug, Default)]
pub(super) struct Guesses {
    of_one: HashMap<IpAddr, Strikes>,
    of_all: Option<Strikes>,
}

impl Guesses {
    /// Notes a wrong token, and tells how long its answer is to be delayed.
    pub(super) fn note(&mut self, from: IpAddr, now: Instant) -> Duration {
        let network = network_of(from);
        if !self.of_one.contains_key(&network) {
            self.make_room(now);
        }
        let of_one = self.of_one.entry(network).or_insert(Strikes::none(now));
        of_one.add(now);
        let of_all = self.of_all.get_or_insert(Strikes::none(now));
        of_all.add(now);
        if of_one.count == FREE_OF_ONE + 1 {
            log::warn!("{network} has shown {} wrong tokens: its answers are delayed", of_one.count);
        }
        of_one.delay(FREE_OF_ONE).max(of_all.delay(FREE_OF_ALL))
    }

    fn make_room(&mut self, now: Instant) {
        if self.of_one.len() < MAX_NETWORKS {
            return;
        }
        self.of_one.retain(|_, strikes| strikes.at(now).count > 0);
        if self.of_one.len() >= MAX_NETWORKS
            && let Some(least) = self.of_one.iter().min_by_key(|(_, one)| (one.count, one.since))
        {
            let least = *least.0;
            self.of_one.remove(&least);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn delay_grows_with_wrong_tokens_of_one_network_and_time_forgets_them() {
        let (mut guesses, start) = (Guesses::default(), Instant::now());
        for _ in 0..FREE_OF_ONE {
            assert_eq!(guesses.note(v4(1), start), Duration::ZERO);
        }
        assert_eq!(guesses.note(v4(1), start), FIRST_DELAY);
        assert_eq!(guesses.note(v4(1), start), 2 * FIRST_DELAY);
        for _ in 0..50 {
            guesses.note(v4(1), start);
        }
        assert_eq!(guesses.note(v4(1), start), MAX_DELAY);
        assert_eq!(guesses.note(v4(2), start), Duration::ZERO);
        let later = start + 54 * FORGOTTEN_AFTER;
        assert_eq!(guesses.note(v4(1), later), Duration::ZERO);
    }

    #[test]
    fn many_networks_together_are_slowed_and_take_no_more_than_their_memory() {
        let (mut guesses, now) = (Guesses::default(), Instant::now());
        let delays: Vec<_> = (0..3_000).map(|number| guesses.note(v4(number), now)).collect();
        assert!(delays[..FREE_OF_ALL as usize].iter().all(Duration::is_zero));
        assert_eq!(delays.last(), Some(&MAX_DELAY));
        assert_eq!(guesses.of_one.len(), MAX_NETWORKS);
    }

    #[test]
    fn addresses_of_one_ipv6_network_are_one_guesser() {
        let network = |text: &str| network_of(text.parse().unwrap());
        assert_eq!(network("2001:db8::1"), network("2001:db8::ffff:2"));
        assert_ne!(network("2001:db8::1"), network("2001:db8:0:1::1"));
        assert_eq!(network("::ffff:192.0.2.1"), network("192.0.2.1"));
    }
}
