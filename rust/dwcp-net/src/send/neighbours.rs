//! Sessions of this process to one host share the way there, and the lanes that fill it.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lanes of all sessions together: as many as one has at most by itself. More fill no link better, and each has a thread
/// at both ends, so that hundreds of sessions with a dozen each would keep the processors busy with changing threads.
const LANES_OF_ALL: usize = 64;

/// Transfers under way, by the hash of their host: two hosts that meet here have a few lanes less, and without a lock a
/// child of a fork finds none that nobody holds any more.
static UNDER_WAY: [AtomicUsize; 1024] = [const { AtomicUsize::new(0) }; 1024];

/// The sessions to one host.
#[derive(Clone, Copy)]
pub(super) struct Neighbours(&'static AtomicUsize);

/// A transfer that is under way.
pub(super) struct UnderWay(Neighbours);

impl Neighbours {
    /// Those to `host`. A child of a fork has others than its parent, whose transfers it does not see the end of.
    pub(super) fn of(host: IpAddr) -> Neighbours {
        let mut hasher = DefaultHasher::new();
        (std::process::id(), host).hash(&mut hasher);
        Neighbours(&UNDER_WAY[hasher.finish() as usize % UNDER_WAY.len()])
    }

    /// Counts a transfer until it ends.
    pub(super) fn enter(self) -> UnderWay {
        self.0.fetch_add(1, Ordering::Relaxed);
        UnderWay(self)
    }

    /// How many lanes each transfer under way may have.
    pub(super) fn share(self) -> u16 {
        (LANES_OF_ALL / self.0.load(Ordering::Relaxed).max(1)).max(1) as u16
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfers_to_one_host_share_the_lanes_and_others_do_not_count() {
        let host = IpAddr::from([192, 0, 2, 1]);
        let (first, second) = (Neighbours::of(host), Neighbours::of(host));
        let mut others = (2..=255).map(|last| Neighbours::of(IpAddr::from([192, 0, 2, last])));
        let _elsewhere = others.find(|other| !std::ptr::eq(other.0, first.0)).unwrap().enter();
        let one = first.enter();
        assert_eq!((first.share(), second.share()), (64, 64));
        let many: Vec<_> = (0..15).map(|_| second.enter()).collect();
        assert_eq!(first.share(), 4);
        let more: Vec<_> = (0..240).map(|_| Neighbours::of(host).enter()).collect();
        assert_eq!(second.share(), 1);
        drop((many, more, one));
        assert_eq!(second.share(), 64);
    }
}
