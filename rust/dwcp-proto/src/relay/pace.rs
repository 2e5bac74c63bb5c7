//! How fast the other side takes the records of a stream.

/// Over about so many records it is measured how fast they are taken.
const PACED: f64 = 64.0;

/// How fast the other side takes the records of a stream that it has.
#[derive(Default)]
pub(super) struct Pace {
    /// Records that were taken, and the time in which there was one to take; what is long ago counts for less.
    records: f64,
    busy_s: f64,
    /// When the last of them was taken, or the next one came after all had been.
    pub(super) since_s: f64,
}

impl Pace {
    /// So many were taken at a moment, before which there was one to take, or none.
    pub(super) fn took(&mut self, records: u64, had_some: bool, at_s: f64) {
        let records = records as f64;
        let kept = (1.0 - records / PACED).max(0.0);
        self.records = self.records * kept + records;
        let busy_s = if had_some { (at_s - self.since_s).max(0.0) } else { 0.0 };
        self.busy_s = self.busy_s * kept + busy_s;
        self.since_s = at_s;
    }

    /// How long it takes at this pace to take so many more.
    pub(super) fn needs_s(&self, records: u64, at_s: f64) -> f64 {
        let waited_s = (at_s - self.since_s).max(0.0);
        if records == 0 {
            0.0
        } else if self.records > 0.0 {
            records as f64 * (self.busy_s + waited_s) / self.records
        } else {
            waited_s
        }
    }
}
