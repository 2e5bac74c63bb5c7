//! What has come on a lane and was not asked for yet, so that heads and short bodies come in few calls.

/// So much is read ahead where nothing says that it is wanted: heads and short bodies.
pub(crate) const AHEAD_BYTES: usize = 16 * 1024;

/// Bytes in order, of which the first were taken.
pub(crate) struct Inbox {
    bytes: Box<[u8]>,
    start: usize,
    end: usize,
}

impl Inbox {
    pub(crate) fn new() -> Inbox {
        Inbox { bytes: vec![0; AHEAD_BYTES].into_boxed_slice(), start: 0, end: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Moves as many bytes as there are into `target`, and tells how many.
    pub(crate) fn take(&mut self, target: &mut [u8]) -> usize {
        let count = target.len().min(self.end - self.start);
        target[..count].copy_from_slice(&self.bytes[self.start..self.start + count]);
        self.start += count;
        count
    }

    /// Has `read` put bytes where all that was there was taken; it tells how many.
    ///
    /// # Errors
    /// What `read` says.
    pub(crate) fn fill<E>(&mut self, read: impl FnOnce(&mut [u8]) -> Result<usize, E>) -> Result<(), E> {
        debug_assert!(self.is_empty(), "what is left over would be lost");
        (self.start, self.end) = (0, 0);
        self.end = read(&mut self.bytes)?.min(self.bytes.len());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(inbox: &mut Inbox, bytes: &[u8]) {
        let read = |room: &mut [u8]| {
            room[..bytes.len()].copy_from_slice(bytes);
            Ok::<_, ()>(bytes.len())
        };
        inbox.fill(read).unwrap();
    }

    #[test]
    fn bytes_come_out_in_the_order_in_which_they_came() {
        let mut inbox = Inbox::new();
        put(&mut inbox, &[1, 2, 3]);
        let mut two = [0; 2];
        assert_eq!((inbox.take(&mut two), two), (2, [1, 2]));
        assert!(!inbox.is_empty());
        assert_eq!((inbox.take(&mut two), two[0]), (1, 3));
        assert!(inbox.is_empty());
        put(&mut inbox, &[4, 5]);
        let mut rest = [0; 8];
        assert_eq!((inbox.take(&mut rest), &rest[..2]), (2, &[4, 5][..]));
    }

    #[test]
    fn nothing_is_there_after_a_read_that_failed() {
        let mut inbox = Inbox::new();
        put(&mut inbox, &[1]);
        inbox.take(&mut [0]);
        assert_eq!(inbox.fill(|_| Err("gone")), Err("gone"));
        assert!(inbox.is_empty());
    }
}
