//! Work on many blocks, shared among a stated number of threads.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

/// Calls `work` with every job, from as many threads as there are `states`, this one included; each keeps its state.
///
/// After an error no further job is begun; the one returned is of the earliest job that failed, as far as they were
/// begun. If the system has no thread to give, the others do its work.
pub(super) fn for_each<J: Send, S: Send, E: Send>(
    states: &mut [S],
    jobs: impl Iterator<Item = J> + Send,
    work: impl Fn(&mut S, J) -> Result<(), E> + Sync,
) -> Result<(), E> {
    let Some((mine, others)) = states.split_first_mut() else { return Ok(()) };
    if others.is_empty() {
        return { jobs }.try_for_each(|job| work(mine, job));
    }
    let jobs = Mutex::new(jobs.enumerate());
    let failure = Mutex::new(None);
    let failed = AtomicBool::new(false);
    let drain = |state: &mut S| {
        while !failed.load(Ordering::Relaxed) {
            let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((number, job)) = job else { break };
            if let Err(error) = work(state, job) {
                failed.store(true, Ordering::Relaxed);
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                if failure.as_ref().is_none_or(|(earlier, _)| number < *earlier) {
                    *failure = Some((number, error));
                }
            }
        }
    };
    thread::scope(|scope| {
        for state in others {
            let drain = &drain;
            let started = thread::Builder::new().name("dwcp-patch".to_owned());
            if started.spawn_scoped(scope, move || drain(state)).is_err() {
                break;
            }
        }
        drain(mine);
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some((_, error)) => Err(error),
        None => Ok(()),
    }
}

/// What went wrong with the first block that something went wrong with, kept until what matters more is known.
pub(super) struct Failure<E>(Mutex<Option<(u32, E)>>);

impl<E> Failure<E> {
    pub(super) fn new() -> Failure<E> {
        Failure(Mutex::new(None))
    }

    /// Keeps what became of block `index`, if that is an error.
    pub(super) fn keep(&self, index: u32, result: Result<(), E>) {
        let Err(error) = result else { return };
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.as_ref().is_none_or(|(earlier, _)| index < *earlier) {
            *kept = Some((index, error));
        }
    }

    /// Whether there is one.
    pub(super) fn is_some(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_some()
    }

    /// The error.
    pub(super) fn into_result(self) -> Result<(), E> {
        match self.0.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, error)) => Err(error),
            None => Ok(()),
        }
    }
}

/// States that are kept from one call to the next, so that their memory is there already: the first write to new memory
/// costs more than most of what is done in it.
pub(super) struct Kept<S>(Mutex<Vec<S>>);

/// How many states are kept at most.
const MOST_KEPT: usize = 2;
/// What worked on longer blocks than these has too much memory to be kept.
const KEPT_BLOCK_BYTES: u32 = 1 << 20;

impl<S: Default> Kept<S> {
    pub(super) const fn new() -> Kept<S> {
        Kept(Mutex::new(Vec::new()))
    }

    /// One state for each of `threads` threads, at least one, kept or new.
    pub(super) fn take(&self, threads: usize) -> Vec<S> {
        let threads = threads.max(1);
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let rest = kept.len().saturating_sub(threads);
        let mut taken = kept.split_off(rest);
        drop(kept);
        taken.resize_with(threads, S::default);
        taken
    }

    /// Keeps states, which have worked on blocks of this length, for the next call, as far as there are not enough.
    pub(super) fn put_back(&self, states: Vec<S>, block_bytes: u32) {
        if block_bytes > KEPT_BLOCK_BYTES {
            return;
        }
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MOST_KEPT.saturating_sub(kept.len());
        let more = states.len().saturating_sub(room);
        kept.extend(states.into_iter().skip(more));
    }
}

/// One state for each of `threads` threads, at least one.
pub(super) fn states<S: Default>(threads: usize) -> Vec<S> {
    std::iter::repeat_with(S::default).take(threads.max(1)).collect()
}
