//! The threads of the lanes of a side that dials, and the one that finds how many there are to be.

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::{LaneChange, LaneController, LaneRange, Survey};
use crate::cancel::{Cancel, lock};
use crate::error::NetError;
use crate::transport::Closer;

/// How often to look at the lanes.
pub(crate) const TICK: Duration = Duration::from_millis(50);

/// A transfer, by the moment of its beginning, and the lanes that its blocks flow on.
pub(crate) type Flow = (Instant, Vec<(u32, Closer)>);

/// What gets lost on the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Losses {
    /// As far as is known, what finds the queue full.
    Fair,
    /// Some at random, and the congestion control of the lanes slows down for it.
    Minded,
    /// Some at random, and it does not.
    Ignored,
}

/// What is the same of a side that dials, whichever way the state goes.
pub(crate) trait Dialling: Send + Sync + 'static {
    /// What the threads of lanes are called.
    const NAME: &'static str;
    /// Whether this side receives what lanes carry.
    const RECEIVES: bool;

    /// Runs a lane until the session is over, or the lane is not wanted any more.
    fn run(&self, number: u16);

    /// How many lanes there are to be.
    fn wanted(&self) -> u16;

    /// Changes that.
    fn want(&self, lanes: u16);

    /// How many of them have ever had something to do: these have a thread each.
    fn useful(&self) -> u16 {
        self.wanted()
    }

    /// What losses there are, and what the lanes make of them.
    fn losses(&self, lanes: &[(u32, Closer)]) -> Losses;

    /// Has lanes fill at once what room the link has, as far as the system lets them, or grow as they otherwise do.
    fn hurry(&self, lanes: &[(u32, Closer)], on: bool);

    /// Notes how it was changed in the transfer that is under way.
    fn note(&self, changes: &[LaneChange]);

    /// Waits until blocks flow; none once the session is over.
    fn await_flow(&self) -> Option<Flow>;

    /// Ends every wait.
    fn stop(&self) -> &Cancel;

    /// Shuts all lanes at once.
    fn halt(&self);
}

/// The threads of a session.
pub(crate) struct Crew<D> {
    pub(crate) side: Arc<D>,
    /// By the number of the lane.
    workers: Mutex<Vec<JoinHandle<()>>>,
    pacer: Mutex<Option<JoinHandle<()>>>,
    /// The way to the peer is another, and their number to be between these.
    moved: Mutex<Option<LaneRange>>,
}

impl<D: Dialling> Crew<D> {
    /// Puts lanes to work: as many as are wanted, or as are found to be best in `range`.
    pub(crate) fn start(side: D, range: Option<LaneRange>) -> Result<Arc<Crew<D>>, NetError> {
        let side = Arc::new(side);
        let (workers, pacer, moved) = (Mutex::default(), Mutex::default(), Mutex::default());
        let crew = Arc::new(Crew { side, workers, pacer, moved });
        let controller = range.map(LaneController::new);
        if let Some(controller) = &controller {
            crew.side.want(controller.wanted());
        }
        let started = crew.man().and_then(|()| {
            let Some(controller) = controller else { return Ok(()) };
            *lock(&crew.pacer) = Some(crew.spawn_pacer(controller)?);
            Ok(())
        });
        if let Err(error) = started {
            crew.side.stop().cancel();
            // A lane that is up does not end because no more are to be made.
            crew.side.halt();
            crew.join();
            return Err(error);
        }
        Ok(crew)
    }

    fn spawn_pacer(self: &Arc<Self>, controller: LaneController) -> Result<JoinHandle<()>, NetError> {
        let pacing = Arc::clone(self);
        spawn("dwcp-lanes".to_owned(), move || pacing.pace(controller))
    }

    /// The way to the peer is another from now on: the number of lanes is found anew in `range`.
    pub(crate) fn relocate(self: &Arc<Self>, range: LaneRange) -> Result<(), NetError> {
        let mut pacer = lock(&self.pacer);
        if self.side.stop().is_cancelled() {
            return Ok(());
        }
        *lock(&self.moved) = Some(range);
        if pacer.is_none() {
            let lanes = self.side.wanted();
            let controller = LaneController::new(LaneRange { least: lanes, start: lanes, most: lanes });
            *pacer = Some(self.spawn_pacer(controller)?);
        }
        Ok(())
    }

    /// Starts a thread for each lane that is of use and has none.
    fn man(&self) -> Result<(), NetError> {
        let mut workers = lock(&self.workers);
        for number in 0..self.side.useful() {
            let known = workers.get(usize::from(number));
            if known.is_some_and(|worker| !worker.is_finished()) {
                continue;
            }
            let side = Arc::clone(&self.side);
            let worker = spawn(format!("dwcp-{}-{number}", D::NAME), move || side.run(number))?;
            match workers.get_mut(usize::from(number)) {
                Some(ended) => *ended = worker,
                None => workers.push(worker),
            }
        }
        Ok(())
    }

    /// Starts what threads are missing; where there are none to be had, the lanes that are there do the work.
    pub(crate) fn man_more(&self) {
        if let Err(error) = self.man() {
            log::debug!("a lane could not start: {error}");
        }
    }

    /// Changes the number of lanes while blocks flow, until the session is over.
    fn pace(&self, mut controller: LaneController) {
        let epoch = Instant::now();
        let mut survey = Survey::new(D::RECEIVES);
        let (mut transfer, mut hurrying) = (None, false);
        while let Some((started, lanes)) = self.side.await_flow() {
            let at_s = epoch.elapsed().as_secs_f64();
            if transfer.replace(started) != Some(started) {
                controller.begin(at_s);
                controller.count_from(at_s - started.elapsed().as_secs_f64());
                self.side.note(controller.history());
            }
            if let Some(range) = lock(&self.moved).take() {
                controller.relocate(at_s, range);
                survey.relocate(&lanes);
            }
            // The system is asked about every lane for this.
            if !controller.knows_losses() {
                match self.side.losses(&lanes) {
                    Losses::Fair => {}
                    Losses::Ignored => controller.hold(at_s),
                    Losses::Minded => controller.surge(at_s),
                }
            }
            if let Some(sample) = survey.look(at_s, &lanes) {
                controller.observe(&sample);
            }
            if hurrying != controller.hurries(at_s) {
                hurrying = !hurrying;
                self.side.hurry(&lanes, hurrying);
            }
            if self.side.wanted() != controller.wanted() {
                self.side.want(controller.wanted());
                self.side.note(controller.history());
            }
            self.man_more();
            if self.side.stop().sleep(TICK).is_err() {
                return;
            }
        }
    }

    /// Changes how many lanes there are, and has those made that are missing.
    #[cfg(test)]
    pub(crate) fn want(&self, lanes: u16) {
        self.side.want(lanes);
        self.man().unwrap();
    }

    /// Whether no lane has a thread left.
    pub(crate) fn is_finished(&self) -> bool {
        lock(&self.workers).iter().all(JoinHandle::is_finished)
    }

    /// Waits for all threads, once the session is over.
    pub(crate) fn join(&self) {
        // A thread that panicked has nothing more to say. The pacer, which starts others, is waited for first.
        let _ = lock(&self.pacer).take().map(JoinHandle::join);
        for worker in std::mem::take(&mut *lock(&self.workers)) {
            let _ = worker.join();
        }
    }
}

fn spawn(name: String, work: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, NetError> {
    let start = || {
        #[cfg(test)]
        tests::take_thread()?;
        std::thread::Builder::new().name(name.clone()).spawn(work)
    };
    start().map_err(|source| NetError::Io { action: "start the thread", addr: name, source })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::io;

    use super::*;

    thread_local! {
        /// How many threads the system still lets this one start; any number, if none.
        static THREADS: Cell<Option<usize>> = const { Cell::new(None) };
    }

    pub(super) fn take_thread() -> io::Result<()> {
        THREADS.with(|threads| match threads.get() {
            Some(0) => Err(io::ErrorKind::WouldBlock.into()),
            left => {
                threads.set(left.map(|left| left - 1));
                Ok(())
            }
        })
    }

    /// Lanes that are up until they are shut.
    struct Up {
        stop: Cancel,
        halt: Cancel,
        wanted: u16,
        /// Of each lane whether it was shut.
        shut: Arc<Mutex<Vec<bool>>>,
    }

    impl Dialling for Up {
        const NAME: &'static str = "up";
        const RECEIVES: bool = false;

        fn run(&self, _number: u16) {
            let shut = self.halt.sleep(Duration::from_secs(10)).is_err();
            lock(&self.shut).push(shut);
        }

        fn wanted(&self) -> u16 {
            self.wanted
        }

        fn want(&self, _lanes: u16) {}

        fn losses(&self, _lanes: &[(u32, Closer)]) -> Losses {
            Losses::Fair
        }

        fn hurry(&self, _lanes: &[(u32, Closer)], _on: bool) {}

        fn note(&self, _changes: &[LaneChange]) {}

        fn await_flow(&self) -> Option<Flow> {
            None
        }

        fn stop(&self) -> &Cancel {
            &self.stop
        }

        fn halt(&self) {
            self.halt.cancel();
        }
    }

    #[test]
    fn lanes_that_are_up_are_shut_when_there_is_no_thread_for_another_or_for_the_pacer() {
        let pacer = LaneRange { least: 1, start: 1, most: 2 };
        for (wanted, range) in [(2, None), (1, Some(pacer))] {
            let shut = Arc::new(Mutex::default());
            let (stop, halt) = (Cancel::new(), Cancel::new());
            THREADS.set(Some(1));
            let crew = Crew::start(Up { stop, halt, wanted, shut: Arc::clone(&shut) }, range);
            THREADS.set(None);
            assert!(matches!(crew.err(), Some(NetError::Io { action: "start the thread", .. })));
            assert_eq!(*lock(&shut), [true]);
        }
    }
}
