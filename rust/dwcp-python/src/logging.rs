//! Native log records as records of Python's `logging`.

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;

/// Passes records on to `logging.getLogger`, under the module's path with dots.
struct Bridge;

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) || !record.target().starts_with("dwcp") {
            return;
        }
        let name = format!("dwcp_fast.{}", record.target().replace("::", "."));
        let level = match record.level() {
            Level::Error => 40,
            Level::Warn => 30,
            Level::Info => 20,
            Level::Debug | Level::Trace => 10,
        };
        // At the end of the process there is no logging any more.
        Python::try_attach(|py| {
            let tell = || -> PyResult<()> {
                let logger = py.import("logging")?.call_method1("getLogger", (name,))?;
                logger.call_method1("log", (level, "%s", record.args().to_string()))?;
                Ok(())
            };
            if let Err(error) = tell() {
                error.write_unraisable(py, None);
            }
        });
    }

    fn flush(&self) {}
}

/// Install the bridge, once a process; debug records are not worth the price of the interpreter.
pub fn install() {
    static BRIDGE: Bridge = Bridge;
    // Another extension in this process cannot be in the way: the logger is this library's own.
    if log::set_logger(&BRIDGE).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
