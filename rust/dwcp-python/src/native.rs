//! Native work away from the interpreter.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;

use crate::error::Failure;

/// How often a long wait looks for signals: a KeyboardInterrupt is to be raised within 100 ms.
const SIGNAL_SLICE: Duration = Duration::from_millis(50);

/// Run `work` with the interpreter released. A panic, which is a bug of ours, becomes a `DwcpError`.
pub fn run<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T, Failure> + Send) -> PyResult<T> {
    py.detach(|| guarded(work)).map_err(|failure| failure.raise(py))
}

/// Run `work`, which may take long, and look for signals meanwhile where these come: `work` has a thread of its own then.
/// If a handler raises, `stop` is called, the end of `work` is awaited, and what the handler raised is raised.
pub fn run_interruptibly<T: Send>(
    py: Python<'_>,
    stop: impl Fn() + Send + Sync,
    work: impl FnOnce() -> Result<T, Failure> + Send,
) -> PyResult<T> {
    if !takes_signals(py)? {
        return run(py, work);
    }
    let outcome = py.detach(|| {
        thread::scope(|scope| {
            let (done, finished) = sync_channel(1);
            let worker = move || done.send(guarded(work));
            thread::Builder::new().name("dwcp-call".to_owned()).spawn_scoped(scope, worker)?;
            let mut interrupt = None;
            loop {
                match finished.recv_timeout(SIGNAL_SLICE) {
                    Ok(outcome) => return Ok((outcome, interrupt)),
                    Err(RecvTimeoutError::Disconnected) => {
                        return Err(Failure::Panic("lost a thread".to_owned()));
                    }
                    Err(RecvTimeoutError::Timeout) if interrupt.is_some() => {}
                    Err(RecvTimeoutError::Timeout) => {
                        interrupt = Python::attach(|py| py.check_signals()).err();
                        if interrupt.is_some() {
                            stop();
                        }
                    }
                }
            }
        })
    });
    match outcome {
        Ok((_, Some(interrupt))) => Err(interrupt),
        Ok((outcome, None)) => outcome.map_err(|failure| failure.raise(py)),
        Err(failure) => Err(failure.raise(py)),
    }
}

/// Run `work` on this thread, which asks what it is given every 50 ms at least whether to stop, and comes back soon if so.
/// If a signal handler raises, that is what it is told, and what the handler raised is raised.
pub fn run_here<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut dyn FnMut() -> bool) -> Result<T, Failure> + Send,
) -> PyResult<T> {
    if !takes_signals(py)? {
        return run(py, || work(&mut || false));
    }
    let (outcome, interrupt) = py.detach(|| {
        let mut interrupt = None;
        let mut looked = Instant::now();
        let mut stops = || {
            if interrupt.is_some() || looked.elapsed() < SIGNAL_SLICE / 2 {
                return false;
            }
            looked = Instant::now();
            interrupt = Python::attach(|py| py.check_signals()).err();
            interrupt.is_some()
        };
        (guarded(|| work(&mut stops)), interrupt)
    });
    match interrupt {
        Some(interrupt) => Err(interrupt),
        None => outcome.map_err(|failure| failure.raise(py)),
    }
}

/// Do signal handlers run on this thread? They run on the main one only: on another, looking for them would do nothing
/// but take the interpreter, and hundreds of sessions, each on its thread, would be at that most of the time.
fn takes_signals(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import(intern!(py, "threading"))?;
    let main = threading.call_method0(intern!(py, "main_thread"))?.getattr(intern!(py, "ident"))?;
    main.eq(threading.call_method0(intern!(py, "get_ident"))?)
}

fn guarded<T>(work: impl FnOnce() -> Result<T, Failure>) -> Result<T, Failure> {
    // What `work` borrows is dropped or only read after a panic.
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Failure::Panic(told(&*panic))))
}

fn told(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".to_owned())
}
