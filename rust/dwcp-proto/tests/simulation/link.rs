//! Random numbers from a seed, and lanes as two queues of bytes.

use std::collections::VecDeque;

use dwcp_proto::error::ProtoError;
use dwcp_proto::frame::{Frame, FrameDecoder, FrameEncoder, Pending, SessionId};
use dwcp_proto::limits::HEADER_BYTES;

/// Longest time from the first byte of a frame to its last.
const FRAME_DEADLINE: u64 = 2_000;

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.draw() % bound.max(1)
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// One direction of a lane, from the encoder of one side to the decoder of the other.
pub struct Pipe {
    encoder: FrameEncoder,
    decoder: FrameDecoder,
    latency: u64,
    /// Bytes under way with the time of their arrival.
    flying: VecDeque<(u64, Vec<u8>)>,
    arrived: Vec<u8>,
    /// A frame whose head is read and whose body is not there yet.
    reading: Option<Reading>,
    /// When the last whole frame was read, or nothing was there to read.
    idle_since: u64,
    /// Bytes taken out at the end of the pipe, and the place of the byte that was altered.
    consumed: u64,
    pub flipped_at: Option<u64>,
    written: u64,
    /// No byte can be written any more; those under way still arrive.
    pub closed: bool,
}

enum Reading {
    Head(Pending),
    Body(Frame, usize),
}

/// A frame with its body, and whether the altered byte is in the body.
pub struct Arrival {
    pub frame: Frame,
    pub body: Vec<u8>,
    pub altered: bool,
}

impl Pipe {
    pub fn new(latency: u64, session: &SessionId) -> Pipe {
        let (mut encoder, mut decoder) = (FrameEncoder::new(), FrameDecoder::new());
        encoder.set_session(session);
        decoder.set_session(session);
        Pipe {
            encoder,
            decoder,
            latency,
            flying: VecDeque::new(),
            arrived: vec![],
            reading: None,
            idle_since: 0,
            consumed: 0,
            flipped_at: None,
            written: 0,
            closed: false,
        }
    }

    pub fn write(&mut self, now: u64, frame: &Frame, body: &[u8]) {
        if self.closed {
            return;
        }
        let mut bytes = vec![];
        self.encoder.encode(frame, body.len() as u32, &mut bytes).unwrap();
        bytes.extend(body);
        self.written += bytes.len() as u64;
        self.flying.push_back((now + self.latency, bytes));
    }

    /// Loses a random end of what is under way, in the middle of a frame more often than not.
    pub fn cut(&mut self, random: &mut Random) {
        self.closed = true;
        let under_way = |pipe: &Pipe| pipe.flying.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>();
        let before = under_way(self);
        self.flying.truncate(random.below(self.flying.len() as u64 + 1) as usize);
        if let Some((_, bytes)) = self.flying.back_mut() {
            bytes.truncate(random.below(bytes.len() as u64 + 1) as usize);
        }
        self.written -= before - under_way(self);
    }

    /// Alters one bit that is under way; half of them in the first bytes of a frame.
    pub fn flip(&mut self, random: &mut Random) {
        if self.flying.is_empty() || self.flipped_at.is_some() {
            return;
        }
        let chunk = random.below(self.flying.len() as u64) as usize;
        let before: u64 = self.flying.iter().skip(chunk).map(|(_, bytes)| bytes.len() as u64).sum();
        let bytes = &mut self.flying[chunk].1;
        let most = if random.once_in(2) { bytes.len().min(76) } else { bytes.len() };
        if most == 0 {
            return;
        }
        let byte = random.below(most as u64) as usize;
        bytes[byte] ^= 1 << random.below(8);
        self.flipped_at = Some(self.written - before + byte as u64);
    }

    /// Whether nothing more will ever come out.
    pub fn is_drained(&self) -> bool {
        self.closed && self.flying.is_empty()
    }

    /// Whether a frame has begun and does not end: an altered length makes its reader wait for ever.
    pub fn is_stalled(&self, now: u64) -> bool {
        let stalled = self.reading.is_some() && now > self.idle_since + FRAME_DEADLINE;
        assert!(!stalled || self.flipped_at.is_some() || self.closed, "a whole frame is waited for");
        stalled
    }

    /// The next whole frame that has arrived.
    pub fn read(&mut self, now: u64) -> Result<Option<Arrival>, ProtoError> {
        let result = self.read_frame(now);
        if self.reading.is_none() {
            self.idle_since = now;
        }
        result
    }

    fn read_frame(&mut self, now: u64) -> Result<Option<Arrival>, ProtoError> {
        while self.flying.front().is_some_and(|(time, _)| *time <= now) {
            if let Some((_, bytes)) = self.flying.pop_front() {
                self.arrived.extend(bytes);
            }
        }
        loop {
            match self.reading.take() {
                None => {
                    if self.arrived.len() < HEADER_BYTES {
                        return Ok(None);
                    }
                    let header = self.take(HEADER_BYTES).try_into().unwrap();
                    self.reading = Some(Reading::Head(self.decoder.header(&header)?));
                }
                Some(Reading::Head(pending)) => {
                    if self.arrived.len() < pending.head_len {
                        self.reading = Some(Reading::Head(pending));
                        return Ok(None);
                    }
                    let (head, body_len) = (self.take(pending.head_len), pending.body_len);
                    let frame = self.decoder.head(pending, &head)?;
                    assert!(!self.altered(), "an altered {} was taken", frame.name());
                    self.reading = Some(Reading::Body(frame, body_len));
                }
                Some(Reading::Body(frame, body_len)) => {
                    if self.arrived.len() < body_len {
                        self.reading = Some(Reading::Body(frame, body_len));
                        return Ok(None);
                    }
                    let body = self.take(body_len);
                    let altered = self.altered();
                    if altered {
                        // It is up to the reader now, who may drop or refuse the body unread.
                        self.flipped_at = None;
                    }
                    return Ok(Some(Arrival { frame, body, altered }));
                }
            }
        }
    }

    fn altered(&self) -> bool {
        self.flipped_at.is_some_and(|place| place < self.consumed)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        self.consumed += length as u64;
        let rest = self.arrived.split_off(length);
        std::mem::replace(&mut self.arrived, rest)
    }
}
