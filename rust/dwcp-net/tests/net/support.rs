//! Both ends of a transfer, with deadlines on every wait.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_net::security::{DialSecurity, Identity, ListenSecurity, Token, TokenBook};
use dwcp_net::{
    Cancel, Event, Listener, NetError, Observer, ReceiveOptions, ReceiveReport, SendOptions, SendReport,
    SendSession,
};
use dwcp_proto::{Limits, Manifest};
use dwcp_store::{
    BaseChoice, MemorySink, MemorySource, ScanOptions, SharedBytes, Sink, Source, SymlinkPolicy, TreeSink,
    TreeSinkOptions, TreeSource, scan,
};

/// The longest that anything in these tests may take.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Collects events.
#[derive(Default)]
pub struct Log(Mutex<Vec<Event>>);

impl Observer for Log {
    fn event(&self, event: Event) {
        self.0.lock().unwrap().push(event);
    }
}

impl Log {
    pub fn count(&self, wanted: impl Fn(&Event) -> bool) -> usize {
        self.0.lock().unwrap().iter().filter(|event| wanted(event)).count()
    }

    pub fn wait_for(&self, wanted: impl Fn(&Event) -> bool) {
        self.wait_for_some(1, wanted);
    }

    pub fn wait_for_some(&self, count: usize, wanted: impl Fn(&Event) -> bool) {
        let end = Instant::now() + PATIENCE;
        while self.count(&wanted) < count {
            assert!(Instant::now() < end, "no such event among {:?}", self.0.lock().unwrap());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

/// A receiver that was paired, or needs no pairing.
pub struct Receiver {
    pub listener: Arc<Listener>,
    pub cancel: Cancel,
    pub log: Arc<Log>,
    pub dial: DialSecurity,
}

pub fn quick_receive() -> ReceiveOptions {
    ReceiveOptions {
        idle_timeout: Duration::from_secs(3),
        handshake_timeout: Duration::from_secs(2),
        ..ReceiveOptions::default()
    }
}

pub fn quick_send() -> SendOptions {
    SendOptions {
        block_bytes: 65_536,
        idle_timeout: Duration::from_secs(3),
        connect_timeout: Duration::from_secs(2),
        reconnect_for: Duration::from_secs(5),
        ..SendOptions::default()
    }
}

/// Both sides of a pairing.
pub fn pairing() -> (ListenSecurity, DialSecurity) {
    let identity = Identity::generate().unwrap();
    let token = Token::generate().unwrap();
    let tokens = Arc::new(TokenBook::default());
    tokens.add(token.clone());
    let fingerprint = identity.fingerprint();
    let dial = DialSecurity::Paired { fingerprint, token, identity: Identity::generate().unwrap() };
    (ListenSecurity::Paired { identity, tokens }, dial)
}

pub fn receiver(listen: ListenSecurity, dial: DialSecurity, options: ReceiveOptions) -> Receiver {
    receiver_at("127.0.0.1:0", listen, dial, options)
}

pub fn receiver_at(
    address: &str,
    listen: ListenSecurity,
    dial: DialSecurity,
    options: ReceiveOptions,
) -> Receiver {
    let (cancel, log) = (Cancel::new(), Arc::new(Log::default()));
    let listener = Listener::bind(address, listen, options, &cancel, log.clone(), None).unwrap();
    Receiver { listener: Arc::new(listener), cancel, log, dial }
}

pub fn paired_receiver() -> Receiver {
    let (listen, dial) = pairing();
    receiver(listen, dial, quick_receive())
}

pub fn plain_receiver() -> Receiver {
    receiver(ListenSecurity::Insecure, DialSecurity::Insecure, quick_receive())
}

impl Receiver {
    pub fn address(&self) -> String {
        self.listener.local_addr().to_string()
    }

    /// Receives the transfer of the next session.
    pub fn receive_first(&self, sink: Arc<dyn Sink>) -> JoinHandle<Result<ReceiveReport, NetError>> {
        let listener = Arc::clone(&self.listener);
        std::thread::spawn(move || {
            let report = listener.accept(Some(PATIENCE))?.receive(sink, Some(PATIENCE))?;
            report.ok_or(NetError::PeerClosed { phase: "idle", hint: None })
        })
    }

    /// Receives one transfer, over as many sessions as it takes.
    pub fn receive_one(&self, sink: Arc<dyn Sink>) -> JoinHandle<Result<ReceiveReport, NetError>> {
        let listener = Arc::clone(&self.listener);
        std::thread::spawn(move || {
            loop {
                let session = listener.accept(Some(PATIENCE))?;
                match session.receive(Arc::clone(&sink), Some(PATIENCE)) {
                    Ok(Some(report)) => return Ok(report),
                    Ok(None) => return Err(NetError::PeerClosed { phase: "idle", hint: None }),
                    Err(NetError::PeerClosed { .. }) => {}
                    Err(error) => return Err(error),
                }
            }
        })
    }
}

/// A transfer in memory.
pub fn buffers(contents: &[(&str, Vec<u8>)], block_bytes: u32) -> (Arc<Manifest>, Arc<dyn Source>) {
    let named = contents.iter().map(|(name, bytes)| {
        let bytes: SharedBytes = Arc::new(bytes.clone());
        ((*name).to_owned(), bytes)
    });
    let (manifest, source) = MemorySource::new(named.collect(), block_bytes, &Limits::default()).unwrap();
    (Arc::new(manifest), Arc::new(source))
}

pub fn memory_sink() -> Arc<MemorySink> {
    Arc::new(MemorySink::new(1 << 30))
}

pub fn contents(sink: &MemorySink) -> Vec<(String, Vec<u8>)> {
    let buffers = sink.take_buffers().unwrap();
    buffers.into_iter().map(|(name, buffer)| (name, buffer.into_vec().unwrap())).collect()
}

pub fn tree(path: &Path, bases: BaseChoice) -> (Arc<Manifest>, Arc<TreeSource>) {
    let options = ScanOptions { symlinks: SymlinkPolicy::Keep, block_bytes: 65_536, bases, index: None };
    let (manifest, source) = scan(&[path.to_path_buf()], &options, &Limits::default()).unwrap();
    (Arc::new(manifest), Arc::new(source))
}

pub fn tree_sink(path: PathBuf) -> Arc<TreeSink> {
    Arc::new(TreeSink::new(path, TreeSinkOptions { sync: false, ..TreeSinkOptions::default() }))
}

/// Bytes that do not compress, the same for the same seed.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend(state.wrapping_mul(0x2545_F491_4F6C_DD1D).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Connects and sends once.
pub fn send_once(
    address: &str,
    dial: &DialSecurity,
    options: SendOptions,
    state: &(Arc<Manifest>, Arc<dyn Source>),
) -> Result<SendReport, NetError> {
    let session =
        SendSession::connect(address, dial.clone(), options, &Cancel::new(), Arc::new(Log::default()))?;
    session.send(Arc::clone(&state.0), Arc::clone(&state.1))
}

pub fn connect(address: &str, dial: &DialSecurity) -> SendSession {
    SendSession::connect(address, dial.clone(), quick_send(), &Cancel::new(), Arc::new(Log::default()))
        .unwrap()
}

/// Joins a thread, but not for ever.
pub fn join<T>(thread: JoinHandle<T>) -> T {
    let end = Instant::now() + PATIENCE;
    while !thread.is_finished() {
        assert!(Instant::now() < end, "a thread does not end");
        std::thread::sleep(Duration::from_millis(2));
    }
    thread.join().unwrap()
}

/// Whether an error is one of those with which the loss of the peer ends.
pub fn tells_of_loss(error: &NetError) -> bool {
    matches!(error, NetError::PeerClosed { .. } | NetError::Unreachable { .. } | NetError::Deadline { .. })
}
