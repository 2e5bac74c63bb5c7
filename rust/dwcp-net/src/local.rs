//! The addresses of this machine that lanes come from, and which of them are of no use at present.

use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::cancel::lock;

/// The range of the time for which an address that failed is the last choice.
const REST: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));

/// The most that may be named.
pub(crate) const MAX_LOCAL: usize = 16;

/// Addresses to connect from; with none the system chooses.
pub(crate) struct LocalAddresses {
    addresses: Vec<IpAddr>,
    failures: Mutex<Vec<Option<Failure>>>,
}

/// Where an address stands that others were better than.
#[derive(Clone, Copy)]
struct Failure {
    times: u32,
    retry_at: Instant,
}

impl LocalAddresses {
    pub(crate) fn new(addresses: &[IpAddr]) -> LocalAddresses {
        let failures = Mutex::new(vec![None; addresses.len()]);
        LocalAddresses { addresses: addresses.to_vec(), failures }
    }

    /// What lane `number` is to try, in this order: the one of its own, the others in turn, and last those that have
    /// failed lately.
    pub(crate) fn order(&self, number: u16, now: Instant) -> Vec<Option<IpAddr>> {
        let count = self.addresses.len();
        if count == 0 {
            return vec![None];
        }
        let failures = lock(&self.failures);
        let turn = (0..count).map(|step| (usize::from(number) + step) % count);
        let rests = |index: usize| failures[index].is_some_and(|failure| now < failure.retry_at);
        let (resting, well): (Vec<_>, Vec<_>) = turn.partition(|index| rests(*index));
        well.into_iter().chain(resting).map(|index| Some(self.addresses[index])).collect()
    }

    /// A lane was made from `from`, after it could not be made from those in `before`. Where none can be made from any,
    /// no address is to blame.
    pub(crate) fn made(&self, from: Option<IpAddr>, before: &[Option<IpAddr>], now: Instant) {
        let mut failures = lock(&self.failures);
        for (address, failure) in self.addresses.iter().zip(failures.iter_mut()) {
            if from == Some(*address) {
                *failure = None;
            } else if before.contains(&Some(*address)) {
                let times = failure.map_or(0, |failure| failure.times) + 1;
                let rest = REST.0.saturating_mul(1 << times.min(10)).min(REST.1);
                *failure = Some(Failure { times, retry_at: now + rest });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lanes_take_turns_and_an_address_that_failed_is_tried_again_later() {
        let [one, two, three] = [1, 2, 3].map(|last| Some(IpAddr::from([127, 0, 0, last])));
        let local = LocalAddresses::new(&[one, two, three].map(Option::unwrap));
        let now = Instant::now();
        assert_eq!(local.order(0, now), [one, two, three]);
        assert_eq!(local.order(5, now), [three, one, two]);
        local.made(two, &[one], now);
        assert_eq!(local.order(0, now), [two, three, one]);
        assert_eq!(local.order(1, now), [two, three, one]);
        // For twice as long when it still does not work.
        let later = now + 2 * REST.0;
        assert_eq!(local.order(0, later), [one, two, three]);
        local.made(two, &[one], later);
        assert_eq!(local.order(0, later + 2 * REST.0), [two, three, one]);
        assert_eq!(local.order(0, later + 4 * REST.0), [one, two, three]);
        local.made(one, &[], later);
        assert_eq!(local.order(0, later), [one, two, three]);
        assert_eq!(LocalAddresses::new(&[]).order(7, now), [None]);
    }
}
