//! What one direction of a link is like, and how that is written: `rate_bps=5e8 delay_ms=50 loss=0.001`.

use std::fs;
use std::sync::Arc;

use thiserror::Error;

/// Nanoseconds since the program started.
pub type Nanos = u64;

const NANOS_PER_SECOND: f64 = 1e9;
const NANOS_PER_MS: f64 = 1e6;
/// What one line of a packet-delivery trace stands for: a packet of this many bits.
const BITS_PER_OPPORTUNITY: f64 = 1504.0 * 8.0;
const MAX_TRACE_BYTES: u64 = 64 << 20;
const MAX_RATE_BPS: f64 = 1e12;
const MAX_MS: f64 = 3.6e6;
const MAX_BYTES: f64 = 17_179_869_184.0;

/// A setting that cannot be used.
#[derive(Debug, Error)]
pub enum SettingError {
    /// Not of the form `key=value`.
    #[error("{word:?} is not of the form key=value")]
    Form {
        /// What was given.
        word: String,
    },
    /// No setting has this name.
    #[error("no setting is called {key:?}")]
    Key {
        /// What was given.
        key: String,
    },
    /// A number that is none, or out of range.
    #[error("{key}={value:?} is not a number from {low} to {high}")]
    Value {
        /// Name of the setting.
        key: String,
        /// What was given.
        value: String,
        /// The least value allowed.
        low: f64,
        /// The greatest value allowed.
        high: f64,
    },
    /// A trace cannot be read.
    #[error("trace {path:?}: {source}")]
    TraceFile {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A trace is longer than the limit.
    #[error("trace {path:?} has {length} bytes, more than {MAX_TRACE_BYTES}")]
    TraceLength {
        /// The file.
        path: String,
        /// Its length.
        length: u64,
    },
    /// A line of a trace is neither `seconds bits/s` nor a millisecond, or goes back in time.
    #[error("trace, line {line}: {text:?} is neither a later `seconds bits/s` nor a later millisecond")]
    TraceLine {
        /// Number of the line, from 1.
        line: usize,
        /// What it says.
        text: String,
    },
}

/// How many bits a second pass.
#[derive(Debug, Clone)]
pub enum Rate {
    /// As many as come.
    Unlimited,
    /// Always as many; 0 is an outage.
    Fixed(f64),
    /// From each time on as many, counted from `origin`, and over again after `period`.
    Steps { steps: Arc<[(Nanos, f64)]>, period: Option<Nanos>, origin: Nanos },
}

impl Rate {
    /// Bits per second at a time, None for unlimited, and until when that holds.
    pub fn at(&self, time: Nanos) -> (Option<f64>, Nanos) {
        match self {
            Self::Unlimited => (None, Nanos::MAX),
            Self::Fixed(rate) => (Some(*rate), Nanos::MAX),
            Self::Steps { steps, period, origin } => {
                let since = time.saturating_sub(*origin);
                let within = period.map_or(since, |length| since % length);
                let next = steps.partition_point(|(start, _)| *start <= within);
                // Before the first line of a trace, that line holds.
                let rate = steps.get(next.saturating_sub(1)).map(|(_, rate)| *rate);
                let end = steps.get(next).map(|(start, _)| *start).or(*period);
                (rate, end.map_or(Nanos::MAX, |end| time + (end - within)))
            }
        }
    }
}

/// How long the queue in front of the line may become.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum QueueLimit {
    Bytes(u64),
    /// What the line passes in this time at its present rate.
    Time(Nanos),
}

/// When packets are lost, by themselves and in bursts (the model of Gilbert and Elliott).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Loss {
    /// Share lost in the good state.
    pub good: f64,
    /// Share lost in the bad state.
    pub bad: f64,
    /// Chance, at each packet, of turning from good to bad.
    pub to_bad: f64,
    /// Chance, at each packet, of turning from bad to good.
    pub to_good: f64,
}

/// One direction of a link. The default is a wire without delay or limit.
#[derive(Debug, Clone)]
pub struct Settings {
    pub rate: Rate,
    pub queue: QueueLimit,
    pub delay: Nanos,
    /// Most that is added to the delay; what is added wanders, and never so fast that packets overtake.
    pub jitter: Nanos,
    /// Share of packets held back by `reorder_by`, so that later ones overtake them.
    pub reorder: f64,
    pub reorder_by: Nanos,
    pub loss: Loss,
    pub seed: u64,
    /// Nothing passes, and what is on its way is lost.
    pub cut: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            rate: Rate::Unlimited,
            queue: QueueLimit::Time(50_000_000),
            delay: 0,
            jitter: 0,
            reorder: 0.0,
            reorder_by: 0,
            loss: Loss::default(),
            seed: 1,
            cut: false,
        }
    }
}

impl Settings {
    /// Take one `key=value`; `now` is where a trace begins.
    pub fn assign(&mut self, word: &str, now: Nanos) -> Result<(), SettingError> {
        let (key, value) =
            word.split_once('=').ok_or_else(|| SettingError::Form { word: word.to_owned() })?;
        let number = |low: f64, high: f64| number(key, value, low, high);
        let share = || number(0.0, 1.0);
        let milliseconds = || number(0.0, MAX_MS).map(|ms| (ms * NANOS_PER_MS) as Nanos);
        match key {
            "rate_bps" if value == "none" => self.rate = Rate::Unlimited,
            "rate_bps" => self.rate = Rate::Fixed(number(0.0, MAX_RATE_BPS)?),
            "trace" => self.rate = read_trace(value, now)?,
            "queue_bytes" => self.queue = QueueLimit::Bytes(number(1.0, MAX_BYTES)? as u64),
            "queue_ms" => self.queue = QueueLimit::Time(milliseconds()?),
            "delay_ms" => self.delay = milliseconds()?,
            "jitter_ms" => self.jitter = milliseconds()?,
            "reorder" => self.reorder = share()?,
            "reorder_ms" => self.reorder_by = milliseconds()?,
            "loss" => self.loss.good = share()?,
            "loss_bad" => self.loss.bad = share()?,
            "to_bad" => self.loss.to_bad = share()?,
            "to_good" => self.loss.to_good = share()?,
            "seed" => self.seed = number(0.0, 9e15)? as u64,
            "cut" => self.cut = number(0.0, 1.0)? > 0.0,
            _ => return Err(SettingError::Key { key: key.to_owned() }),
        }
        Ok(())
    }
}

fn number(key: &str, value: &str, low: f64, high: f64) -> Result<f64, SettingError> {
    value.parse().ok().filter(|number| (low..=high).contains(number)).ok_or_else(|| SettingError::Value {
        key: key.to_owned(),
        value: value.to_owned(),
        low,
        high,
    })
}

fn read_trace(path: &str, origin: Nanos) -> Result<Rate, SettingError> {
    let failed = |source| SettingError::TraceFile { path: path.to_owned(), source };
    let length = fs::metadata(path).map_err(failed)?.len();
    if length > MAX_TRACE_BYTES {
        return Err(SettingError::TraceLength { path: path.to_owned(), length });
    }
    parse_trace(&fs::read_to_string(path).map_err(failed)?, origin)
}

/// Read lines of `seconds bits/s`, or of mahimahi's milliseconds at which one packet may leave.
pub fn parse_trace(text: &str, origin: Nanos) -> Result<Rate, SettingError> {
    let mut steps: Vec<(Nanos, f64)> = Vec::new();
    let mut chances: Vec<Nanos> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let refused = || SettingError::TraceLine { line: index + 1, text: line.to_owned() };
        let words: Vec<f64> = line
            .split_whitespace()
            .map(|word| word.parse().ok().filter(|number| (0.0..=MAX_RATE_BPS).contains(number)))
            .collect::<Option<_>>()
            .ok_or_else(refused)?;
        match (words.as_slice(), chances.is_empty(), steps.last()) {
            ([], ..) => {}
            (&[seconds, rate], true, last) => {
                let start = (seconds.min(MAX_MS) * NANOS_PER_SECOND) as Nanos;
                if last.is_some_and(|(before, _)| *before >= start) {
                    return Err(refused());
                }
                steps.push((start, rate));
            }
            (&[ms], _, None) => {
                let at = (ms.min(MAX_MS) * NANOS_PER_MS) as Nanos;
                if chances.last().is_some_and(|before| *before > at) {
                    return Err(refused());
                }
                chances.push(at);
            }
            _ => return Err(refused()),
        }
    }
    if let Some(end) = chances.last() {
        let period = end + NANOS_PER_MS as Nanos;
        return Ok(Rate::Steps { steps: spread(&chances).into(), period: Some(period), origin });
    }
    if steps.is_empty() {
        return Err(SettingError::TraceLine { line: 1, text: String::new() });
    }
    Ok(Rate::Steps { steps: steps.into(), period: None, origin })
}

/// Turn chances to send a packet into the rate of each millisecond.
fn spread(chances: &[Nanos]) -> Vec<(Nanos, f64)> {
    let millisecond = NANOS_PER_MS as Nanos;
    let mut steps: Vec<(Nanos, f64)> = vec![(0, 0.0)];
    for same in chances.chunk_by(|a, b| a / millisecond == b / millisecond) {
        let start = same[0] / millisecond * millisecond;
        if steps.last().is_some_and(|(last, _)| *last == start) {
            steps.pop();
        }
        steps.push((start, same.len() as f64 * BITS_PER_OPPORTUNITY * 1e3));
        steps.push((start + millisecond, 0.0));
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_with_the_limit() {
        let mut settings = Settings::default();
        let told = settings.assign("loss=1.5", 0).unwrap_err().to_string();
        assert_eq!(told, "loss=\"1.5\" is not a number from 0 to 1");
        for word in ["loss", "los=0.1", "delay_ms=-1", "rate_bps=fast", "delay_ms=nan", "trace=/nowhere"] {
            assert!(settings.assign(word, 0).is_err(), "{word}");
        }
    }

    #[test]
    fn a_trace_of_rates_holds_from_each_line_to_the_next() {
        let rate = parse_trace("0 1e6\n2.5 9e6\n", 1_000).unwrap();
        assert_eq!(rate.at(1_000), (Some(1e6), 2_500_001_000));
        assert_eq!(rate.at(2_500_001_000), (Some(9e6), Nanos::MAX));
    }

    #[test]
    fn a_trace_of_deliveries_repeats_and_rests_where_nothing_is_delivered() {
        let rate = parse_trace("0\n0\n3\n", 0).unwrap();
        let ms = 1_000_000;
        assert_eq!(rate.at(0), (Some(2.0 * 1504.0 * 8e3), ms));
        assert_eq!(rate.at(2 * ms), (Some(0.0), 3 * ms));
        assert_eq!(rate.at(3 * ms), (Some(1504.0 * 8e3), 4 * ms));
        assert_eq!(rate.at(4 * ms), rate_later(rate.at(0), 4 * ms));
    }

    fn rate_later((rate, until): (Option<f64>, Nanos), by: Nanos) -> (Option<f64>, Nanos) {
        (rate, until + by)
    }

    #[test]
    fn a_trace_that_goes_back_or_mixes_both_kinds_is_refused() {
        for text in ["", "1 5\n0 5\n", "0 5\n7\n", "7\n0 5\n", "5\n4\n", "x\n", "1 2 3\n"] {
            assert!(parse_trace(text, 0).is_err(), "{text:?}");
        }
    }
}
