//! Frames in the order of a lane: sequence numbers, seeds and checks.

use dwcp_codec::digest::check64;

use super::{Frame, FrameKind, SessionId, head};
use crate::error::ProtoError;
use crate::limits::{HEADER_BYTES, MAX_BLOCK};
use crate::wire::{Reader, Writer};

/// Bytes of the header that its check covers.
const CHECKED: usize = 16;

/// Writes the frames of one direction of a lane.
#[derive(Debug, Default)]
pub struct FrameEncoder {
    seed: u64,
    sequence: u32,
}

impl FrameEncoder {
    /// An encoder for a lane that has no session yet.
    #[must_use]
    pub fn new() -> FrameEncoder {
        FrameEncoder::default()
    }

    /// From the next frame on checks are seeded with the session. Called after HELLO or WELCOME was encoded.
    pub fn set_session(&mut self, session: &SessionId) {
        self.seed = session.seed();
    }

    /// Appends the header and the head of `frame`, after which a BLOCK or RECORD has a body of `body_len` bytes.
    ///
    /// # Errors
    /// [`ProtoError::BodyLength`], [`ProtoError::HeadLength`], [`ProtoError::Limit`] and
    /// [`ProtoError::SequenceExhausted`]; `out` is as it was then.
    pub fn encode(&mut self, frame: &Frame, body_len: u32, out: &mut Vec<u8>) -> Result<(), ProtoError> {
        let start = out.len();
        let result = self.append(frame, body_len, out);
        if result.is_err() {
            out.truncate(start);
        }
        result
    }

    fn append(&mut self, frame: &Frame, body_len: u32, out: &mut Vec<u8>) -> Result<(), ProtoError> {
        head::check_body(frame, body_len)?;
        let following = self.sequence.checked_add(1).ok_or(ProtoError::SequenceExhausted)?;
        let start = out.len();
        Writer(out).zeros(HEADER_BYTES);
        head::encode(frame, out)?;
        let head_len = check_head_length(frame.kind(), out.len() - start - HEADER_BYTES)?;
        let (header, head) = out[start..].split_at_mut(HEADER_BYTES);
        header[0] = frame.kind() as u8;
        header[4..8].copy_from_slice(&(head_len as u32).to_le_bytes());
        header[8..12].copy_from_slice(&body_len.to_le_bytes());
        header[12..16].copy_from_slice(&self.sequence.to_le_bytes());
        let check = check64(self.seed, &[&header[..CHECKED], head]);
        header[CHECKED..].copy_from_slice(&check.to_le_bytes());
        self.sequence = following;
        Ok(())
    }
}

/// A frame whose header was read; its head comes next, then its body.
#[derive(Debug)]
pub struct Pending {
    /// Length of the head to read and to give to [`FrameDecoder::head`].
    pub head_len: usize,
    /// Length of the body that follows the head.
    pub body_len: usize,
    kind: FrameKind,
    checked: [u8; CHECKED],
    check: u64,
}

/// Reads the frames of one direction of a lane. After an error the lane is lost.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    seed: u64,
    in_session: bool,
    sequence: u32,
}

impl FrameDecoder {
    /// A decoder for a lane that has no session yet: it takes HELLO, WELCOME and ERROR.
    #[must_use]
    pub fn new() -> FrameDecoder {
        FrameDecoder::default()
    }

    /// From the next frame on checks are seeded with the session, and HELLO and WELCOME are refused.
    pub fn set_session(&mut self, session: &SessionId) {
        self.seed = session.seed();
        self.in_session = true;
    }

    /// Checks everything in a header except its check, which covers the head too.
    ///
    /// # Errors
    /// [`ProtoError`] for an unknown or misplaced type, lengths that the type cannot have, or a wrong sequence.
    pub fn header(&mut self, bytes: &[u8; HEADER_BYTES]) -> Result<Pending, ProtoError> {
        let mut reader = Reader::new("frame header", bytes);
        let value = reader.u8()?;
        let kind = FrameKind::ALL.into_iter().find(|kind| *kind as u8 == value);
        let kind = kind.ok_or(ProtoError::FrameType { value })?;
        reader.zeros("flags", 1)?;
        reader.zeros("reserved", 2)?;
        let fits = match kind {
            FrameKind::Hello | FrameKind::Welcome => !self.in_session,
            FrameKind::Error => true,
            _ => self.in_session,
        };
        if !fits {
            return Err(ProtoError::OutOfPlace { frame: kind.name(), in_session: self.in_session });
        }
        let head_len = check_head_length(kind, reader.u32()? as usize)?;
        let body_len = reader.u32()?;
        let (low, high) = match kind {
            FrameKind::Block => (1, MAX_BLOCK),
            FrameKind::Record => (0, MAX_BLOCK),
            _ => (0, 0),
        };
        if !(low..=high).contains(&body_len) {
            return Err(ProtoError::BodyLength { frame: kind.name(), length: body_len, low, high });
        }
        let found = reader.u32()?;
        if found != self.sequence {
            return Err(ProtoError::Sequence { expected: self.sequence, found });
        }
        let mut checked = [0; CHECKED];
        checked.copy_from_slice(&bytes[..CHECKED]);
        Ok(Pending { head_len, body_len: body_len as usize, kind, checked, check: reader.u64()? })
    }

    /// Checks and reads the head that follows a header.
    ///
    /// # Errors
    /// [`ProtoError::Check`] when a bit of header or head was altered or the frame is of another session, and
    /// [`ProtoError`] for anything in the head that the format does not allow.
    pub fn head(&mut self, pending: Pending, head: &[u8]) -> Result<Frame, ProtoError> {
        let name = pending.kind.name();
        if head.len() != pending.head_len || check64(self.seed, &[&pending.checked, head]) != pending.check {
            return Err(ProtoError::Check { frame: name });
        }
        let frame = head::decode(pending.kind, head)?;
        head::check_body(&frame, pending.body_len as u32)?;
        self.sequence = self.sequence.checked_add(1).ok_or(ProtoError::SequenceExhausted)?;
        Ok(frame)
    }
}

fn check_head_length(kind: FrameKind, length: usize) -> Result<usize, ProtoError> {
    let (low, high) = head::head_lengths(kind);
    if (low..=high).contains(&length) {
        return Ok(length);
    }
    Err(ProtoError::HeadLength { frame: kind.name(), length, low, high })
}
