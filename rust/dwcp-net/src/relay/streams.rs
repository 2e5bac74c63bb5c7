//! The Unix sockets of streams: a thread for each direction of each.

use std::io::{self, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_proto::frame::RecordWord;
use dwcp_proto::relay::{MAX_STREAMS, Record};
use dwcp_vm::{NoBase, PageDecoder, PageEncoder};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};

use super::MIGRATION;
use super::base::{BaseReader, KeepFiles};
use super::pool::Buffer;
use super::shared::{Shared, Side, State, Stream};
use super::worker::refused;
use crate::cancel::{CANCEL_SLICE, lock, wait};
use crate::error::NetError;
use crate::report::thread_cpu;
use crate::transport::SOCKET_SLICE;

/// What is read at once, of a stream that goes to the other side: enough to compress well, and little to wait for on a lane
/// that has just begun.
pub(super) const READ_BYTES: usize = 128 << 10;

/// The same of what goes back.
const RETURN_BYTES: usize = 32 << 10;

/// What telling pages takes for each byte until it was measured, in seconds of a processor; the weight of the newest
/// measurement, and the least bytes that make one.
const PRIOR_S: f64 = 1e-9;
const EFFORT_WEIGHT: f64 = 0.1;
const SURE_BYTES: usize = 32 << 10;

/// Of so many pages that are held when they come for the first time, one comes again, about.
const PAGES_PER_USE: f64 = 10.0;

/// How often a socket that is not there yet is tried.
const RETRY: Duration = Duration::from_millis(20);

fn failed(action: &'static str, channel: &str) -> impl Fn(io::Error) -> NetError {
    let addr = format!("the socket of channel {channel}");
    move |source| NetError::Io { action, addr: addr.clone(), source }
}

/// The side that dials: somebody has connected to the socket of a channel.
pub(super) fn open(shared: &Arc<Shared>, channel: &str, socket: UnixStream) -> Result<(), NetError> {
    set_up(&socket).map_err(failed("set up", channel))?;
    let socket = Arc::new(socket);
    let number = {
        let mut state = lock(&shared.state);
        if state.is_over() || state.finishing {
            return Ok(());
        }
        let number = state.next_stream;
        if number >= MAX_STREAMS {
            return Err(refused("the streams of a relay", (number + 1).into(), MAX_STREAMS.into()));
        }
        state.next_stream += 1;
        let is_migration = channel == MIGRATION;
        state.streams.insert(number, Stream::new(Some(Arc::clone(&socket)), is_migration));
        state.inbox.open(number);
        if is_migration {
            // Now, and not by the readers, whose order is not that of the connections.
            state.has_pages(number);
        }
        let bytes = shared.pool.holding(channel.as_bytes().to_vec());
        push(&mut state, number, RecordWord::Opens, bytes);
        number
    };
    let channel = channel.to_owned();
    start_reader(shared, number, &channel, &socket)?;
    let owner = Arc::clone(shared);
    shared.spawn("dwcp-out", move || write(&owner, number, &channel, &socket, None))
}

/// The other side: the first record of a stream is expected, or there.
pub(super) fn expect(shared: &Arc<Shared>, state: &mut State, number: u32) -> Result<(), NetError> {
    state.streams.insert(number, Stream::new(None, false));
    state.next_stream = state.next_stream.max(number + 1);
    let owner = Arc::clone(shared);
    state.spawn("dwcp-out", move || answer(&owner, number), shared)
}

/// Makes the connection that a stream asks for, and works on it.
fn answer(shared: &Arc<Shared>, number: u32) -> Result<(), NetError> {
    let Some(record) = next(shared, number) else { return Ok(()) };
    let channel = String::from_utf8_lossy(&record.bytes).into_owned();
    let path = shared.options.socket(&channel).ok_or_else(|| NetError::Relay {
        code: dwcp_proto::frame::ErrorCode::Refused,
        reason: format!("there is no channel {channel:?} here"),
    })?;
    // Whoever makes several connections tells them apart by their order.
    let mut state = lock(&shared.state);
    while state.connected < number && !state.is_over() {
        state = wait(&shared.changed, state, CANCEL_SLICE);
    }
    drop(state);
    let socket = connect(shared, path);
    let mut state = lock(&shared.state);
    state.connected = number + 1;
    let is_migration = channel == MIGRATION;
    let socket = match socket {
        Ok(Some(socket)) => Arc::new(socket),
        Ok(None) => return Ok(()),
        Err(error) if !is_migration => {
            log::warn!("channel {channel} of the relay cannot be connected: {error}");
            push(&mut state, number, RecordWord::Reset, shared.pool.holding(Vec::new()));
            if let Some(stream) = state.streams.get_mut(&number) {
                (stream.read_over, stream.write_over) = (true, true);
            }
            drop(state);
            done(shared, number, record.word, record.raw_len);
            return drain(shared, number);
        }
        Err(error) => return Err(failed("connect to", &channel)(error)),
    };
    if let Some(stream) = state.streams.get_mut(&number) {
        stream.socket = Some(Arc::clone(&socket));
        stream.is_migration = is_migration;
    }
    if state.is_over() {
        state.shut_streams();
        return Ok(());
    }
    drop(state);
    shared.changed.notify_all();
    done(shared, number, record.word, record.raw_len);
    start_reader(shared, number, &channel, &socket)?;
    let decoder = if is_migration {
        let cache = shared.cache_bytes.get().copied().unwrap_or_default();
        let base: Box<dyn dwcp_vm::BasePages> = match &shared.base {
            Some(base) => Box::new(BaseReader(Arc::clone(base))),
            None => Box::new(NoBase),
        };
        Some(PageDecoder::new(cache, base, keep(shared)?))
    } else {
        None
    };
    write(shared, number, &channel, &socket, decoder)
}

fn keep(shared: &Shared) -> Result<Option<Box<dyn dwcp_vm::Keep>>, NetError> {
    let keep = shared.options.keep.as_deref().map(KeepFiles::new).transpose()?;
    Ok(keep.map(|keep| Box::new(keep) as Box<dyn dwcp_vm::Keep>))
}

fn set_up(socket: &UnixStream) -> io::Result<()> {
    socket.set_nonblocking(false)?;
    socket.set_write_timeout(Some(SOCKET_SLICE))
}

/// Connects to a socket that may take a while to be there; none if the relay is over before.
fn connect(shared: &Shared, path: &Path) -> io::Result<Option<UnixStream>> {
    let end = Instant::now() + shared.options.connect_timeout;
    loop {
        if lock(&shared.state).is_over() {
            return Ok(None);
        }
        match UnixStream::connect(path) {
            Ok(socket) => {
                set_up(&socket)?;
                return Ok(Some(socket));
            }
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(RETRY),
        }
    }
}

fn push(state: &mut State, stream: u32, word: RecordWord, bytes: Buffer) {
    let raw_len = bytes.len() as u32;
    state.outbox.push(stream, Record { word, bytes: Arc::new(bytes), raw_len });
    state.wake_one();
}

/// The next record of a stream; none once the relay is over.
fn next(shared: &Shared, number: u32) -> Option<Record<Buffer>> {
    let mut state = lock(&shared.state);
    let came = Arc::clone(&state.streams.get(&number)?.came);
    loop {
        if state.is_over() || shared.cancel.is_cancelled() {
            return None;
        }
        if let Some(record) = state.inbox.next(number) {
            return Some(record);
        }
        state = wait(&came, state, CANCEL_SLICE * 4);
    }
}

/// This side is done with a record. With the end of a stream its direction is over, and the peer is to be told of that, at
/// once: a lane that looked in between would find all of it ended and nothing to tell, and end the session before the
/// peer has heard.
fn done(shared: &Shared, number: u32, word: RecordWord, raw_len: u32) {
    let mut state = lock(&shared.state);
    let over = matches!(word, RecordWord::End | RecordWord::Reset);
    if over && let Some(stream) = state.streams.get_mut(&number) {
        stream.write_over = true;
        stream.read_over |= word == RecordWord::Reset;
    }
    if state.inbox.done(number, raw_len) {
        state.wake_one();
    }
    drop(state);
    if over {
        shared.changed.notify_all();
    }
}

/// Takes what still comes for a stream that is not there any more.
fn drain(shared: &Shared, number: u32) -> Result<(), NetError> {
    while let Some(record) = next(shared, number) {
        done(shared, number, record.word, record.raw_len);
        if matches!(record.word, RecordWord::End | RecordWord::Reset) {
            break;
        }
    }
    Ok(())
}

/// Writes what comes for a stream to its socket.
fn write(
    shared: &Arc<Shared>,
    number: u32,
    channel: &str,
    socket: &UnixStream,
    mut decoder: Option<PageDecoder>,
) -> Result<(), NetError> {
    let mut plain = Vec::new();
    while let Some(record) = next(shared, number) {
        let bytes = match record.word {
            RecordWord::Pages => {
                let decoder =
                    decoder.as_mut().ok_or(NetError::Internal { what: "a stream without pages" })?;
                plain.clear();
                decoder.decode(&record.bytes, &mut plain)?;
                plain.as_slice()
            }
            word => {
                if let Some(decoder) = decoder.as_mut().filter(|_| word == RecordWord::Data) {
                    decoder.pass(&record.bytes);
                }
                record.bytes.as_slice()
            }
        };
        match write_all(shared, socket, bytes) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(error) => {
                let state = lock(&shared.state);
                let stream = state.streams.get(&number);
                let (migrates, has_left) =
                    stream.map_or((false, true), |stream| (stream.is_migration, stream.read_over));
                // A machine that has left after its last word does not want to hear more.
                if migrates && (shared.side == Side::Target || !has_left) {
                    return Err(failed("write to", channel)(error));
                }
                drop(state);
                let _ = socket.shutdown(Shutdown::Both);
                done(shared, number, record.word, record.raw_len);
                return if matches!(record.word, RecordWord::End | RecordWord::Reset) {
                    Ok(())
                } else {
                    drain(shared, number)
                };
            }
        }
        let over = matches!(record.word, RecordWord::End | RecordWord::Reset);
        {
            let mut state = lock(&shared.state);
            let to_target = shared.side == Side::Target;
            let count = bytes.len() as u64;
            let migrates = state.streams.get(&number).is_some_and(|stream| stream.is_migration);
            if let Some(decoder) = decoder.as_ref().filter(|_| state.has_pages(number)) {
                state.report.pages = decoder.counts();
            }
            if to_target {
                state.report.stream_bytes += count;
                state.report.migration_bytes += if migrates { count } else { 0 };
            } else {
                state.report.return_bytes += count;
            }
        }
        if over {
            let how = if record.word == RecordWord::End { Shutdown::Write } else { Shutdown::Both };
            // It fails only on a socket that is closed already.
            let _ = socket.shutdown(how);
        }
        done(shared, number, record.word, record.raw_len);
        if over {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes everything; `false` if the relay is over before.
fn write_all(shared: &Shared, mut socket: &UnixStream, mut bytes: &[u8]) -> io::Result<bool> {
    while !bytes.is_empty() {
        match socket.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted
                ) =>
            {
                if lock(&shared.state).is_over() || shared.cancel.is_cancelled() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn start_reader(
    shared: &Arc<Shared>,
    number: u32,
    channel: &str,
    socket: &Arc<UnixStream>,
) -> Result<(), NetError> {
    let (owner, socket, channel) = (Arc::clone(shared), Arc::clone(socket), channel.to_owned());
    shared.spawn("dwcp-in", move || read(&owner, number, &channel, &socket))
}

/// Makes records of what is read from the socket of a stream.
fn read(shared: &Arc<Shared>, number: u32, channel: &str, socket: &UnixStream) -> Result<(), NetError> {
    let is_source = shared.side == Side::Source;
    let is_migration = channel == MIGRATION;
    let is_paged = is_source && is_migration && lock(&shared.state).has_pages(number);
    let mut effort = Effort { seconds_per_byte: PRIOR_S, has_base: false };
    let mut encoder = if is_paged {
        let cache = shared.cache_bytes.get().copied().unwrap_or_default();
        let base = lock(&shared.index).take();
        effort.has_base = base.is_some();
        Some(PageEncoder::new(cache, base, keep(shared)?))
    } else {
        None
    };
    let most = if is_source { READ_BYTES } else { RETURN_BYTES };
    let mut held = shared.pool.empty();
    let mut end = false;
    while !end {
        if !await_bytes(shared, socket).map_err(failed("wait for", channel))?
            || !await_room(shared, number, most as u64)
        {
            return Ok(());
        }
        // As much as there is: it goes in one record.
        while held.len() < most && !end {
            match read_now(socket, &mut held, most) {
                Ok(Some(0)) => end = true,
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) if lock(&shared.state).is_over() => {
                    log::debug!("a socket of a relay that is over: {error}");
                    return Ok(());
                }
                Err(error) if is_migration => return Err(failed("read from", channel)(error)),
                Err(error) => {
                    log::debug!("channel {channel} was reset: {error}");
                    over(shared, number, RecordWord::Reset);
                    return Ok(());
                }
            }
        }
        while !held.is_empty() {
            if !await_room(shared, number, held.len() as u64) {
                return Ok(());
            }
            let mut coded: Option<Buffer> = None;
            let (word, count) = match &mut encoder {
                None => (RecordWord::Data, held.len()),
                Some(encoder) if effort.passes(shared, encoder.returns()) => {
                    (RecordWord::Data, encoder.pass(&held, end))
                }
                Some(encoder) => {
                    let begun = thread_cpu();
                    let count = encoder.encode(&held, end, &mut *coded.insert(shared.pool.empty()));
                    effort.spent(count, thread_cpu().saturating_sub(begun));
                    (RecordWord::Pages, count)
                }
            };
            if count == 0 {
                break;
            }
            let bytes = if let Some(coded) = coded {
                held.drain(..count);
                coded
            } else {
                let mut rest = shared.pool.empty();
                rest.extend_from_slice(&held[count..]);
                held.truncate(count);
                std::mem::replace(&mut held, rest)
            };
            let mut state = lock(&shared.state);
            if is_source {
                state.report.stream_bytes += count as u64;
                state.report.migration_bytes += if is_migration { count as u64 } else { 0 };
            } else {
                state.report.return_bytes += count as u64;
            }
            if let Some(encoder) = &encoder {
                state.count_pages(encoder.counts(), encoder.reason(), encoder.compressed());
            }
            push(&mut state, number, word, bytes);
        }
    }
    over(shared, number, RecordWord::End);
    Ok(())
}

/// What telling pages by what both sides hold takes of a processor.
struct Effort {
    seconds_per_byte: f64,
    has_base: bool,
}

impl Effort {
    fn spent(&mut self, bytes: usize, time: Duration) {
        if bytes >= SURE_BYTES {
            self.seconds_per_byte +=
                EFFORT_WEIGHT * (time.as_secs_f64() / bytes as f64 - self.seconds_per_byte);
        }
    }

    /// Whether pages are better passed on as they are: a link that is fast enough would wait for whoever looks at them. What
    /// is held of pages that come for the first time is of use for the few that come again, and of none for the others.
    /// Who has named a codec, or has a base, wants few bytes.
    fn passes(&self, shared: &Shared, again: bool) -> bool {
        let selector = shared.selector.as_ref().filter(|_| !self.has_base);
        let per_use = if again { 1.0 } else { PAGES_PER_USE };
        selector.is_some_and(|selector| selector.outruns(per_use * self.seconds_per_byte))
    }
}

fn over(shared: &Shared, number: u32, word: RecordWord) {
    let mut state = lock(&shared.state);
    push(&mut state, number, word, shared.pool.holding(Vec::new()));
    if let Some(stream) = state.streams.get_mut(&number) {
        stream.read_over = true;
    }
    drop(state);
    shared.changed.notify_all();
}

/// Waits until there is something to read, or the end; `false` once the relay is over.
fn await_bytes(shared: &Shared, socket: &UnixStream) -> io::Result<bool> {
    let slice = Timespec { tv_sec: 0, tv_nsec: i64::from(SOCKET_SLICE.subsec_nanos()) };
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&slice)) {
            Ok(1..) => return Ok(!lock(&shared.state).is_over()),
            Ok(0) | Err(Errno::INTR) => {
                if lock(&shared.state).is_over() || shared.cancel.is_cancelled() {
                    return Ok(false);
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
}

/// Waits until a record of so many bytes may be added to a stream; `false` once the relay is over.
fn await_room(shared: &Shared, stream: u32, raw_len: u64) -> bool {
    let mut state = lock(&shared.state);
    loop {
        if state.is_over() || shared.cancel.is_cancelled() {
            return false;
        }
        if state.has_room(shared.side, stream, raw_len, shared.started.elapsed().as_secs_f64()) {
            return true;
        }
        state = wait(&shared.changed, state, CANCEL_SLICE);
    }
}

/// Appends what is there to `held`, up to `most` bytes in all; none if there is nothing now. A buffer that was used before
/// may have room for more: a record of more than fits what may be under way would wait for ever.
fn read_now(socket: &UnixStream, held: &mut Vec<u8>, most: usize) -> io::Result<Option<usize>> {
    let before = held.len();
    held.resize(most.max(before), 0);
    let came = recv(socket, &mut held[before..], RecvFlags::DONTWAIT);
    held.truncate(before + came.map_or(0, |(_, count)| count));
    match came {
        Ok((_, count)) => Ok(Some(count)),
        Err(Errno::INTR | Errno::AGAIN) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use dwcp_proto::frame::Taken;

    use super::*;
    use crate::relay::shared::tests::alone;

    /// The side that dials with one stream whose machine has said all that it will, and that has reached the peer.
    fn left() -> (Arc<Shared>, UnixStream, UnixStream) {
        let made = alone(Side::Source);
        let (socket, machine) = UnixStream::pair().unwrap();
        let mut stream = Stream::new(None, false);
        stream.read_over = true;
        {
            let mut state = lock(&made.state);
            state.streams.insert(0, stream);
            state.inbox.open(0);
        }
        (Arc::new(made), socket, machine)
    }

    fn come(shared: &Shared, number: u64, word: RecordWord, bytes: &[u8]) {
        let mut state = lock(&shared.state);
        let record = Record { word, bytes: shared.pool.holding(bytes.to_vec()), raw_len: bytes.len() as u32 };
        assert!(state.inbox.accept((0, number), record).unwrap());
        state.tell_writer(0);
    }

    #[test]
    fn session_is_not_at_peace_before_the_peer_was_told_of_the_end_of_its_stream() {
        let (shared, _socket, _machine) = left();
        come(&shared, 0, RecordWord::Data, b"word");
        come(&shared, 1, RecordWord::End, b"");
        let first = next(&shared, 0).unwrap();
        done(&shared, 0, first.word, first.raw_len);
        let end = next(&shared, 0).unwrap();
        // As it is while the writer works: nothing more waits, and the peer knows of all that was done.
        assert!(lock(&shared.state).inbox.tell(1).is_none_or(|told| told.count == 1));
        assert!(!lock(&shared.state).is_quiet());
        done(&shared, 0, end.word, end.raw_len);
        {
            let mut state = lock(&shared.state);
            assert!(!state.is_quiet());
            assert_eq!(state.inbox.tell(2), Some(Taken { stream: 0, count: 2, come: 2 }));
            assert!(state.is_quiet());
        }
    }

    #[test]
    fn buffer_with_more_room_is_read_into_no_further_than_a_record_may_be_long() {
        let (socket, mut machine) = UnixStream::pair().unwrap();
        machine.write_all(&[7; 5_000]).unwrap();
        let mut held = Vec::with_capacity(8_192);
        assert_eq!(read_now(&socket, &mut held, 3_000).unwrap(), Some(3_000));
        assert_eq!(held, [7; 3_000]);
        held.drain(..1_000);
        assert_eq!(read_now(&socket, &mut held, 3_000).unwrap(), Some(1_000));
        assert_eq!(read_now(&socket, &mut held, 8_000).unwrap(), Some(1_000));
        assert_eq!(held, [7; 4_000]);
        // Nothing is there now, and then the end.
        assert_eq!(read_now(&socket, &mut held, 8_000).unwrap(), None);
        drop(machine);
        assert_eq!(read_now(&socket, &mut held, 8_000).unwrap(), Some(0));
        assert_eq!(held, [7; 4_000]);
    }

    #[test]
    fn machine_that_has_left_does_not_end_what_its_peer_still_says() {
        let (shared, socket, machine) = left();
        drop(machine);
        let writer = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || write(&shared, 0, "control", &socket, None))
        };
        for number in 0..3 {
            come(&shared, number, RecordWord::Data, b"nobody reads this");
            // Once it is told of, the writer has found that nobody is there.
            while lock(&shared.state).inbox.tell(0).is_none_or(|told| told.count != number + 1) {
                std::thread::yield_now();
            }
            assert!(!lock(&shared.state).is_quiet());
        }
        come(&shared, 3, RecordWord::End, b"");
        writer.join().unwrap().unwrap();
        let mut state = lock(&shared.state);
        assert!(!state.is_quiet());
        assert_eq!(state.inbox.tell(4).map(|told| told.count), Some(4));
        assert!(state.is_quiet());
    }
}
