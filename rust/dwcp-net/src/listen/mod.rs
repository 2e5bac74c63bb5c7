//! The listening side: accepts connections, finds out what they are, and lets in those that may.

mod admit;
mod network;
mod rdma;
mod registry;
mod waiting;

use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ServerConfig;
use socket2::{Domain, Protocol, Socket, Type};

pub use network::Cidr;
pub use registry::Arrival;
pub(crate) use registry::{Known, Registry};
use waiting::WaitingRoom;

use crate::cancel::{Cancel, lock};
use crate::error::NetError;
use crate::limiter::Limiter;
use crate::receive::{ReceiveOptions, ReceiveSession};
use crate::relay::{Base, RelayOptions};
use crate::report::{Event, Observer};
use crate::security::{ListenSecurity, server_config, split_address};
use crate::transport::{Closer, LinkKind, LocalListener, LocalStream, RdmaIncoming, RdmaListener};

/// How often the thread that accepts looks around.
const ACCEPT_SLICE: Duration = Duration::from_millis(100);

/// Connections that the system may hold until they are accepted, as many as it allows by itself: hundreds of sessions
/// with several lanes each may come at once.
const BACKLOG: i32 = 4_096;

/// Takes over a v1 connection: a blocking stream from which nothing was read. It may take as long as it likes.
pub type ServeV1 = Box<dyn Fn(TcpStream, SocketAddr) + Send + Sync>;

/// Which v1 peers are served, and by whom.
pub struct V1Gate {
    /// Where they may come from; nowhere else.
    pub allowed: Vec<Cidr>,
    /// Serves one of them, on a thread of its own.
    pub serve: ServeV1,
}

/// A port on which peers are let in: senders, and those that ask to be sent something. Dropping it stops that; sessions that were accepted go on.
pub struct Listener {
    shared: Arc<Shared>,
    local: SocketAddr,
    acceptors: Mutex<Vec<JoinHandle<()>>>,
}

/// What the threads of a listener share.
struct Shared {
    security: ListenSecurity,
    tls: Option<Arc<ServerConfig>>,
    options: ReceiveOptions,
    cancel: Cancel,
    observer: Arc<dyn Observer>,
    registry: Arc<Registry>,
    /// The rate of all peers together that are sent to.
    limiter: Arc<Limiter>,
    /// The earlier copy of a machine that relays find here.
    base: Option<Arc<Base>>,
    v1: Option<V1Gate>,
    waiting: Arc<WaitingRoom>,
    stopped: AtomicBool,
}

impl Shared {
    /// Whether nobody is let in any more.
    fn is_over(&self) -> bool {
        self.stopped.load(Ordering::SeqCst) || self.cancel.is_cancelled()
    }
}

impl Listener {
    /// Listens at `address` (`HOST:PORT`; port 0 takes a free one).
    ///
    /// # Errors
    /// [`NetError`] when the address is not one of this machine, is in use, or the identity cannot be used.
    pub fn bind(
        address: &str,
        security: ListenSecurity,
        options: ReceiveOptions,
        cancel: &Cancel,
        observer: Arc<dyn Observer>,
        v1: Option<V1Gate>,
    ) -> Result<Listener, NetError> {
        if let Some(serve) = &options.serve {
            serve.check()?;
        }
        let base = options.relay.as_ref().map(RelayOptions::open_base).transpose()?.flatten();
        let rate = options.serve.as_ref().and_then(|serve| serve.bandwidth_limit);
        let tls = server_config(&security)?;
        let (host, port) = split_address(address)?;
        let failed = |action| {
            let addr = address.to_owned();
            move |source| NetError::Io { action, addr, source }
        };
        let targets = (host.as_str(), port).to_socket_addrs().map_err(failed("look up"))?;
        let mut bound = Err(std::io::Error::new(std::io::ErrorKind::NotFound, "the name has no address"));
        for target in targets {
            bound = listen(target, options.socket_buffer_bytes);
            if bound.is_ok() {
                break;
            }
        }
        let listener = bound.map_err(failed("listen at"))?;
        let local = listener.local_addr().map_err(failed("listen at"))?;
        let beside = options.shares_memory.then(|| LocalListener::bind(local));
        let beside = beside.and_then(|bound| {
            // Whoever is on this host comes through TCP then.
            bound.inspect_err(|error| log::debug!("no memory is shared beside {local}: {error}")).ok()
        });
        if options.rdma && tls.is_some() {
            let reason =
                "it is neither encrypted nor authenticated, and this listener speaks tls only".to_owned();
            return Err(NetError::Link { link: LinkKind::Rdma, reason });
        }
        let over_rdma = options.rdma.then(|| RdmaListener::bind(local)).transpose()?;
        let shared = Arc::new(Shared {
            security,
            tls,
            options,
            cancel: cancel.clone(),
            observer,
            registry: Arc::default(),
            limiter: Arc::new(Limiter::new(rate)),
            base,
            v1,
            waiting: Arc::default(),
            stopped: AtomicBool::new(false),
        });
        let listening = Listener { shared: Arc::clone(&shared), local, acceptors: Mutex::default() };
        let accept = {
            let shared = Arc::clone(&shared);
            move || accept_all(&shared, &listener, beside.as_ref())
        };
        listening.start(accept).map_err(failed("start a thread for"))?;
        if let Some(over_rdma) = over_rdma {
            let accept = move || rdma::accept_all(&shared, over_rdma, local);
            listening.start(accept).map_err(failed("start a thread for"))?;
        }
        Ok(listening)
    }

    /// Has a thread accept connections.
    fn start(&self, accept: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
        let acceptor = std::thread::Builder::new().name("dwcp-accept".to_owned()).spawn(accept)?;
        lock(&self.acceptors).push(acceptor);
        Ok(())
    }

    /// The address that peers reach.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Has all peers together be sent so many bytes a second at most from now on; 0 is taken for 1.
    pub fn set_bandwidth_limit(&self, bytes_per_s: Option<u64>) {
        self.shared.limiter.set_rate(bytes_per_s);
        self.shared.registry.allow(bytes_per_s);
    }

    /// The next sender that was let in.
    ///
    /// # Errors
    /// [`NetError::Deadline`] when none came within `timeout`, [`NetError::Cancelled`], and [`NetError::Closed`].
    pub fn accept(&self, timeout: Option<Duration>) -> Result<ReceiveSession, NetError> {
        let sends = |known: &Known| matches!(known, Known::Receives(_));
        match self.shared.registry.accept(timeout, &self.shared.cancel, sends)? {
            Arrival::Sender(session) => Ok(session),
            Arrival::Fetcher(_) | Arrival::Relay(_) => {
                Err(NetError::Internal { what: "the queue of sessions" })
            }
        }
    }

    /// The next peer that was let in and sends, or has asked for something.
    ///
    /// # Errors
    /// As for [`Listener::accept`].
    pub fn accept_any(&self, timeout: Option<Duration>) -> Result<Arrival, NetError> {
        self.shared.registry.accept(timeout, &self.shared.cancel, |_| true)
    }

    /// Stops listening, and ends waits for peers on other threads. Sessions that were accepted go on. Dropping the
    /// listener does the same.
    pub fn close(&self) {
        self.shared.stopped.store(true, Ordering::SeqCst);
        for acceptor in lock(&self.acceptors).drain(..) {
            // A thread that panicked has nothing more to say.
            let _ = acceptor.join();
        }
        self.shared.registry.end_unaccepted();
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

fn listen(target: SocketAddr, buffer_bytes: Option<u32>) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(target), Type::STREAM, Some(Protocol::TCP))?;
    if cfg!(unix) {
        // A receiver that is started again takes its port back at once.
        socket.set_reuse_address(true)?;
    }
    // Connections inherit the buffers, whose size the TCP handshake announces.
    crate::transport::set_buffers(&socket, buffer_bytes)?;
    socket.bind(&target.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// Accepts connections until the listener is dropped or cancelled.
fn accept_all(shared: &Arc<Shared>, listener: &TcpListener, beside: Option<&LocalListener>) {
    let mut swept = Instant::now();
    while !shared.is_over() {
        let spec = Timespec { tv_sec: 0, tv_nsec: i64::from(ACCEPT_SLICE.subsec_nanos()) };
        let mut fds = vec![PollFd::new(listener, PollFlags::IN)];
        fds.extend(beside.map(|beside| PollFd::new(beside, PollFlags::IN)));
        let ready = poll(&mut fds, Some(&spec));
        let [through_tcp, locally] =
            [0, 1].map(|index| fds.get(index).is_some_and(|socket| !socket.revents().is_empty()));
        if swept.elapsed() >= ACCEPT_SLICE {
            shared.registry.sweep();
            swept = Instant::now();
        }
        if !matches!(ready, Ok(1..)) {
            continue;
        }
        let tcp = through_tcp.then(|| listener.accept().map(|(stream, peer)| Stranger::Tcp(stream, peer)));
        let local = beside.filter(|_| locally).map(|beside| beside.accept().map(Stranger::Local));
        for accepted in [tcp, local].into_iter().flatten() {
            match accepted {
                Ok(stranger) => take(shared, stranger),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => {
                    // Out of descriptors, for example: it may be better in a while.
                    log::warn!("cannot accept a connection: {error}");
                    std::thread::sleep(ACCEPT_SLICE);
                }
            }
        }
    }
}

/// A connection of which nothing is known.
enum Stranger {
    Tcp(TcpStream, SocketAddr),
    Local(LocalStream),
    Rdma(RdmaIncoming),
}

impl Stranger {
    /// How to send it away; none where the system has no more handles.
    fn closer(&self) -> Option<Closer> {
        match self {
            Stranger::Tcp(stream, _) => stream.try_clone().ok().map(Closer::of),
            Stranger::Local(stream) => Some(stream.closer()),
            Stranger::Rdma(incoming) => Some(incoming.closer()),
        }
    }

    fn peer(&self) -> SocketAddr {
        match self {
            Stranger::Tcp(_, peer) => *peer,
            Stranger::Local(stream) => stream.peer_addr(),
            Stranger::Rdma(incoming) => incoming.peer_addr(),
        }
    }
}

/// Gives a connection a thread of its own, if there is room for it.
fn take(shared: &Arc<Shared>, stranger: Stranger) {
    let peer = stranger.peer();
    let Some(place) = WaitingRoom::enter(&shared.waiting, stranger.closer(), peer) else {
        let reason = "too many connections that have not shown who they are".to_owned();
        log::warn!("{peer} is turned away: {reason}");
        shared.observer.event(Event::Refused { peer, reason });
        return;
    };
    let started = std::thread::Builder::new().name("dwcp-receive".to_owned()).spawn({
        let shared = Arc::clone(shared);
        move || admit::admit(&shared, stranger, place)
    });
    if let Err(error) = started {
        log::warn!("cannot start a thread for {peer}: {error}");
    }
}
