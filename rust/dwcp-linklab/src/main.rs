//! A link between two TUN devices: rate, queue, delay, jitter and loss of each direction, and cuts.
//!
//! The devices are opened by whoever starts this and handed down as descriptors. Commands come line by line on
//! stdin, and each is answered by one line of JSON:
//!
//! - `link NAME FD FD [quantum_us=100]` starts a link between two devices, at first a perfect one;
//! - `set NAME ab|ba|both KEY=VALUE...` changes a direction while it runs, see [`settings::Settings`];
//! - `stats` tells what happened so far.
//!
//! At the end of stdin the links end, and the answer to a last `stats` follows.

mod model;
mod packet;
mod pump;
mod random;
mod settings;

use std::collections::BTreeMap;
use std::io::{self, BufRead, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};
use thiserror::Error;

use pump::{Clock, Order, Pump, Report};
use settings::{SettingError, Settings};

const DEFAULT_QUANTUM: Duration = Duration::from_micros(100);
const MAX_QUANTUM_US: u64 = 100_000;

/// A command that cannot be carried out.
#[derive(Debug, Error)]
enum CommandError {
    #[error("{line:?} is no command")]
    Unknown { line: String },
    #[error("{word:?} is not an open descriptor above 2, each to be given once")]
    Descriptor { word: String },
    #[error("{word:?} is not quantum_us=0 to quantum_us={MAX_QUANTUM_US}")]
    Quantum { word: String },
    #[error("there is no link {name:?}")]
    NoLink { name: String },
    #[error("there is a link {name:?} already")]
    LinkExists { name: String },
    #[error("{word:?} is none of ab, ba and both")]
    Sense { word: String },
    #[error("a direction of link {name:?} has ended")]
    Ended { name: String },
    #[error(transparent)]
    Setting(#[from] SettingError),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// A direction, seen from outside its thread.
struct Handle {
    settings: Settings,
    orders: Sender<Order>,
    bell: OwnedFd,
    thread: JoinHandle<io::Result<()>>,
}

struct Lab {
    clock: Clock,
    links: BTreeMap<String, [Handle; 2]>,
    descriptors: Vec<RawFd>,
}

impl Handle {
    fn start(clock: Clock, input: Arc<OwnedFd>, output: Arc<OwnedFd>, quantum: Duration) -> io::Result<Self> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let (orders, receiver) = channel();
        let pump = Pump { clock, input, output, bell: bell.try_clone()?, orders: receiver, quantum };
        let settings = Settings::default();
        let first = settings.clone();
        let thread = std::thread::Builder::new().spawn(move || pump.run(first))?;
        Ok(Self { settings, orders, bell, thread })
    }

    fn tell(&self, order: Order) -> bool {
        self.orders.send(order).is_ok() && self.ring()
    }

    fn ring(&self) -> bool {
        rustix::io::write(&self.bell, &1_u64.to_ne_bytes()).is_ok()
    }

    fn report(&self) -> Option<Report> {
        let (to, from) = channel();
        self.tell(Order::Report(to)).then(|| from.recv().ok()).flatten()
    }
}

impl Lab {
    fn obey(&mut self, line: &str) -> Result<String, CommandError> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["link", name, a, b, rest @ ..] if rest.len() < 2 => {
                self.add(name, a, b, rest.first().copied())?;
            }
            ["set", name, sense, changes @ ..] => self.change(name, sense, changes)?,
            ["stats"] => return self.stats(),
            _ => return Err(CommandError::Unknown { line: line.to_owned() }),
        }
        Ok(r#"{"ok": true}"#.to_owned())
    }

    fn add(&mut self, name: &str, a: &str, b: &str, quantum: Option<&str>) -> Result<(), CommandError> {
        if self.links.contains_key(name) {
            return Err(CommandError::LinkExists { name: name.to_owned() });
        }
        let quantum = match quantum {
            None => DEFAULT_QUANTUM,
            Some(word) => word
                .strip_prefix("quantum_us=")
                .and_then(|number| number.parse().ok())
                .filter(|number| *number <= MAX_QUANTUM_US)
                .map(Duration::from_micros)
                .ok_or_else(|| CommandError::Quantum { word: word.to_owned() })?,
        };
        let a = Arc::new(self.adopt(a)?);
        let b = Arc::new(self.adopt(b)?);
        let there = Handle::start(self.clock, Arc::clone(&a), Arc::clone(&b), quantum)?;
        let back = Handle::start(self.clock, b, a, quantum)?;
        self.links.insert(name.to_owned(), [there, back]);
        Ok(())
    }

    /// Own a descriptor that was handed down.
    fn adopt(&mut self, word: &str) -> Result<OwnedFd, CommandError> {
        let refused = || CommandError::Descriptor { word: word.to_owned() };
        let number: RawFd = word.parse().map_err(|_| refused())?;
        let is_open = std::path::Path::new(&format!("/proc/self/fd/{number}")).exists();
        if number <= 2 || !is_open || self.descriptors.contains(&number) {
            return Err(refused());
        }
        self.descriptors.push(number);
        // SAFETY: the descriptor is open, and nothing else owns it: it was inherited (this program opens its own
        // with CLOEXEC and names none of them in a command), and each number is adopted once.
        let owned = unsafe { OwnedFd::from_raw_fd(number) };
        rustix::io::ioctl_fionbio(owned.as_fd(), true).map_err(io::Error::from)?;
        Ok(owned)
    }

    fn change(&mut self, name: &str, sense: &str, changes: &[&str]) -> Result<(), CommandError> {
        let now = self.clock.now();
        let link = self.links.get_mut(name).ok_or_else(|| CommandError::NoLink { name: name.to_owned() })?;
        let chosen = match sense {
            "ab" => &mut link[..1],
            "ba" => &mut link[1..],
            "both" => &mut link[..],
            _ => return Err(CommandError::Sense { word: sense.to_owned() }),
        };
        // All or nothing: a wrong word changes no direction.
        let mut settings: Vec<Settings> = chosen.iter().map(|handle| handle.settings.clone()).collect();
        for made in &mut settings {
            for word in changes {
                made.assign(word, now)?;
            }
        }
        for (handle, made) in chosen.iter_mut().zip(settings) {
            handle.settings = made.clone();
            if !handle.tell(Order::Change(Box::new(made))) {
                return Err(CommandError::Ended { name: name.to_owned() });
            }
        }
        Ok(())
    }

    fn stats(&self) -> Result<String, CommandError> {
        let mut links = Vec::new();
        for (name, directions) in &self.links {
            let mut told = Vec::new();
            for (sense, handle) in ["ab", "ba"].into_iter().zip(directions) {
                let report = handle.report().ok_or_else(|| CommandError::Ended { name: name.clone() })?;
                told.push(format!("{}: {}", quote(sense), to_json(&report)));
            }
            links.push(format!("{}: {{{}}}", quote(name), told.join(", ")));
        }
        Ok(format!("{{{}}}", links.join(", ")))
    }

    fn end(self) -> io::Result<()> {
        for handle in self.links.into_values().flatten() {
            let Handle { orders, bell, thread, .. } = handle;
            drop(orders);
            rustix::io::write(&bell, &1_u64.to_ne_bytes())?;
            thread.join().map_err(|_| io::Error::other("a direction failed"))??;
        }
        Ok(())
    }
}

fn to_json(report: &Report) -> String {
    let counts = &report.counts;
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mean_late = report.sum_late.checked_div(counts.delivered_packets).unwrap_or(0);
    let numbers = [
        ("packets", counts.packets),
        ("bytes", counts.bytes),
        ("delivered_packets", counts.delivered_packets),
        ("delivered_bytes", counts.delivered_bytes),
        ("dropped_queue", counts.dropped_queue),
        ("dropped_loss", counts.dropped_loss),
        ("dropped_cut", counts.dropped_cut),
        ("dropped_memory", counts.dropped_memory),
        ("reordered", counts.reordered),
        ("max_queue_bytes", counts.max_queue_bytes),
        ("reads", report.reads),
        ("writes", report.writes),
        ("refused", report.refused),
        ("late_packets", report.late_packets),
    ];
    let mut fields: Vec<String> =
        numbers.iter().map(|(name, value)| format!("{}: {value}", quote(name))).collect();
    fields.push(format!(r#""idle_us": {:.1}"#, micros(report.idle)));
    fields.push(format!(r#""mean_late_us": {:.1}"#, micros(mean_late)));
    fields.push(format!(r#""max_late_us": {:.1}"#, micros(report.max_late)));
    format!("{{{}}}", fields.join(", "))
}

fn quote(text: &str) -> String {
    let escaped: String = text
        .chars()
        .map(|letter| match letter {
            '"' | '\\' => format!("\\{letter}"),
            _ if letter.is_control() => format!("\\u{:04x}", u32::from(letter)),
            _ => letter.to_string(),
        })
        .collect();
    format!("\"{escaped}\"")
}

fn main() -> io::Result<()> {
    let mut lab = Lab { clock: Clock::start(), links: BTreeMap::new(), descriptors: Vec::new() };
    let mut answers = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let answer = match lab.obey(&line?) {
            Ok(answer) => answer,
            Err(error) => format!(r#"{{"error": {}}}"#, quote(&error.to_string())),
        };
        writeln!(answers, "{answer}")?;
        answers.flush()?;
    }
    // Whoever asked may have gone without waiting for this.
    if let Ok(last) = lab.stats() {
        let _ = writeln!(answers, "{last}");
    }
    lab.end()
}
