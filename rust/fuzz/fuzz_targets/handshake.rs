//! Connections to a real listener and from a real dialer over loopback: prefaces, greetings and frames as a peer makes
//! them, whole, cut short or altered. Whatever comes, both end in time, and nobody is let in without a greeting.
#![no_main]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dwcp_codec::digest::check64;
use dwcp_net::security::{DialSecurity, Identity, ListenSecurity, Token, TokenBook};
use dwcp_net::{
    Cancel, Event, FetchOptions, FetchSession, Listener, Observer, ReceiveOptions, SendOptions, SendSession,
    Unobserved,
};
use dwcp_proto::frame::{Frame, FrameDecoder, SessionId};
use dwcp_proto::limits::{HEADER_BYTES, PREFACE_BYTES};
use dwcp_store::MemorySink;
use libfuzzer_sys::fuzz_target;

const QUICK: Duration = Duration::from_millis(300);
const WELCOME: u8 = 2;

/// Counts those that were let in.
#[derive(Default)]
struct Opened(AtomicUsize);

impl Observer for Opened {
    fn event(&self, event: Event) {
        if matches!(event, Event::SessionOpened { .. }) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }
}

struct Listening {
    address: SocketAddr,
    opened: Arc<Opened>,
}

/// A listener that takes whatever it is sent, and forgets it.
fn listen(security: ListenSecurity) -> Listening {
    let options = ReceiveOptions {
        idle_timeout: QUICK,
        handshake_timeout: QUICK,
        max_sessions: 1 << 20,
        ..ReceiveOptions::default()
    };
    let opened = Arc::new(Opened::default());
    let listener = Listener::bind("127.0.0.1:0", security, options, &Cancel::new(), opened.clone(), None)
        .expect("a port");
    let address = listener.local_addr();
    std::thread::spawn(move || {
        while let Ok(session) = listener.accept(None) {
            std::thread::spawn(move || {
                session.receive(Arc::new(MemorySink::new(1 << 20)), Some(QUICK)).map(drop)
            });
        }
    });
    Listening { address, opened }
}

fn plain() -> &'static Listening {
    static LISTENING: OnceLock<Listening> = OnceLock::new();
    LISTENING.get_or_init(|| listen(ListenSecurity::Insecure))
}

fn paired() -> &'static Listening {
    static LISTENING: OnceLock<Listening> = OnceLock::new();
    LISTENING.get_or_init(|| {
        let tokens = Arc::new(TokenBook::default());
        tokens.add(Token::from_bytes([7; 32]));
        listen(ListenSecurity::Paired { identity: Identity::generate().expect("randomness"), tokens })
    })
}

/// What a peer says, piece by piece.
enum Piece<'a> {
    Raw(&'a [u8]),
    Sealed { kind: u8, body: &'a [u8], head: &'a [u8] },
}

/// Takes `[kind, how, head length, body length]` and what they announce from the front of `data`.
fn next_piece<'a>(data: &mut &'a [u8]) -> Option<Piece<'a>> {
    let (&[kind, how, head_low, head_high, body_len], rest) = data.split_first_chunk()?;
    let head_len = usize::from(u16::from_le_bytes([head_low, head_high])).min(rest.len());
    let (head, rest) = rest.split_at(head_len);
    if how & 1 == 1 {
        *data = rest;
        return Some(Piece::Raw(head));
    }
    let (body, rest) = rest.split_at(usize::from(body_len).min(rest.len()));
    *data = rest;
    Some(Piece::Sealed { kind, body, head })
}

/// Speaks `data` on `stream` until it is said or the other side has gone.
fn speak(stream: &mut TcpStream, mut data: &[u8], mut seed: u64, joins: bool) {
    let mut sequence = 0_u32;
    while let Some(piece) = next_piece(&mut data) {
        let bytes = match piece {
            Piece::Raw(bytes) => bytes.to_vec(),
            Piece::Sealed { kind, body, head } => {
                let mut bytes = vec![kind, 0, 0, 0];
                bytes.extend((head.len() as u32).to_le_bytes());
                bytes.extend((body.len() as u32).to_le_bytes());
                bytes.extend(sequence.to_le_bytes());
                sequence += 1;
                let check = check64(if kind <= WELCOME { 0 } else { seed }, &[&bytes, head]);
                bytes.extend(check.to_le_bytes());
                bytes.extend(head);
                bytes.extend(body);
                bytes
            }
        };
        if stream.write_all(&bytes).is_err() {
            return;
        }
        if joins && seed == 0 && sequence == 1 {
            seed = welcomed(stream).map_or(1, |session| session.seed());
        }
    }
}

/// The session that the listener names, if it lets this side in.
fn welcomed(stream: &mut TcpStream) -> Option<SessionId> {
    let mut header = [0; PREFACE_BYTES + HEADER_BYTES];
    stream.read_exact(&mut header).ok()?;
    let mut decoder = FrameDecoder::new();
    let pending = decoder.header(header[PREFACE_BYTES..].first_chunk()?).ok()?;
    let mut head = vec![0; pending.head_len];
    stream.read_exact(&mut head).ok()?;
    match decoder.head(pending, &head) {
        Ok(Frame::Welcome(welcome)) => Some(welcome.session),
        _ => None,
    }
}

/// Reads what is still said, so that the other side is not reset in the middle, and ends at once.
fn hang_up(mut stream: TcpStream) {
    let _ = stream.shutdown(std::net::Shutdown::Write);
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
}

fn dialled(data: &[u8]) {
    let mut stream = TcpStream::connect(plain().address).expect("the listener listens");
    stream.set_read_timeout(Some(QUICK)).expect("a time");
    speak(&mut stream, data, 0, true);
    hang_up(stream);
}

fn dialled_tls(data: &[u8]) {
    let Ok(mut stream) = TcpStream::connect(paired().address) else { return };
    stream.set_read_timeout(Some(QUICK)).expect("a time");
    speak(&mut stream, data, 0, false);
    hang_up(stream);
    // No input holds a key, so none may pass.
    assert_eq!(paired().opened.0.load(Ordering::SeqCst), 0);
}

/// Dials a listener that says `data`.
fn dials(data: &[u8], fetches: bool) {
    let server = TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = server.local_addr().expect("it is bound").to_string();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let Ok((mut stream, _)) = server.accept() else { return };
            let _ = stream.set_read_timeout(Some(QUICK));
            speak(&mut stream, data, 0, false);
            hang_up(stream);
        });
        let observer: Arc<dyn Observer> = Arc::new(Unobserved);
        let cancel = Cancel::new();
        if fetches {
            let options = FetchOptions {
                lanes: 1,
                idle_timeout: QUICK,
                connect_timeout: QUICK,
                reconnect_for: Duration::ZERO,
                ..FetchOptions::default()
            };
            drop(FetchSession::connect(&address, DialSecurity::Insecure, options, &cancel, observer));
        } else {
            let options = SendOptions {
                lanes: 1,
                idle_timeout: QUICK,
                connect_timeout: QUICK,
                reconnect_for: Duration::ZERO,
                ..SendOptions::default()
            };
            drop(SendSession::connect(&address, DialSecurity::Insecure, options, &cancel, observer));
        }
    });
}

fuzz_target!(|data: &[u8]| {
    let Some((role, said)) = data.split_first() else { return };
    match role % 4 {
        0 => dialled(said),
        1 => dialled_tls(said),
        2 => dials(said, false),
        _ => dials(said, true),
    }
});
