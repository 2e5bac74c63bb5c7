//! A TCP path that can be cut, stalled and made to flip a bit.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to the bytes from the sender of states to their receiver, all connections taken together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The connection that carries this byte is cut.
    CutOne(u64),
    /// All connections are cut at this byte, and no new ones are taken.
    CutAll(u64),
    /// The lowest bit of this byte is flipped.
    Flip(u64),
    /// The connection that carries this byte carries nothing more, and stays open.
    Stall(u64),
    /// The connection that carries this byte ends for the sender, and stays open for the receiver.
    Abandon(u64),
}

impl Fault {
    fn at(self) -> u64 {
        let (Fault::CutOne(at) | Fault::CutAll(at) | Fault::Flip(at) | Fault::Stall(at) | Fault::Abandon(at)) =
            self;
        at
    }
}

struct Path {
    target: Mutex<SocketAddr>,
    faults: Mutex<Vec<Fault>>,
    open: Mutex<Vec<TcpStream>>,
    passed: AtomicU64,
    dead: AtomicBool,
    frozen: AtomicBool,
    /// Nothing passes from this byte on.
    most: AtomicU64,
    /// Slows the path down, per piece.
    delay: Duration,
}

/// The path; those who dial dial its address.
pub struct Link {
    address: SocketAddr,
    path: Arc<Path>,
}

impl Link {
    /// A path to a listener that receives.
    pub fn new(target: SocketAddr, delay: Duration, faults: &[Fault]) -> Link {
        Link::laid(target, delay, faults, false)
    }

    /// A path to a listener that sends.
    pub fn back(target: SocketAddr, delay: Duration, faults: &[Fault]) -> Link {
        Link::laid(target, delay, faults, true)
    }

    fn laid(target: SocketAddr, delay: Duration, faults: &[Fault], back: bool) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let path = Arc::new(Path {
            target: Mutex::new(target),
            faults: Mutex::new(faults.to_vec()),
            open: Mutex::default(),
            passed: AtomicU64::new(0),
            dead: AtomicBool::new(false),
            frozen: AtomicBool::new(false),
            most: AtomicU64::new(u64::MAX),
            delay,
        });
        let shared = Arc::clone(&path);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let (Ok(near), false) = (stream, shared.dead.load(Ordering::SeqCst)) else { continue };
                let Ok(far) = TcpStream::connect(*shared.target.lock().unwrap()) else { continue };
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                shared.open.lock().unwrap().extend([near.try_clone().unwrap(), far.try_clone().unwrap()]);
                let (near, far) = if back { (far, near) } else { (near, far) };
                let (near_too, far_too) = (near.try_clone().unwrap(), far.try_clone().unwrap());
                let path = Arc::clone(&shared);
                std::thread::spawn(move || carry(&path, near, far));
                std::thread::spawn(move || carry_back(far_too, near_too));
            }
        });
        Link { address, path }
    }

    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Where new connections go.
    pub fn retarget(&self, target: SocketAddr) {
        *self.path.target.lock().unwrap() = target;
    }

    /// Cuts every connection; new ones are taken.
    pub fn cut(&self) {
        self.path.cut();
    }

    /// Carries nothing more, and leaves the connections open.
    pub fn freeze(&self) {
        self.path.frozen.store(true, Ordering::SeqCst);
    }

    /// From this byte on everything waits until another limit is set: a test comes in the middle of a transfer then,
    /// however late it comes.
    pub fn hold_at(&self, bytes: u64) {
        self.path.most.store(bytes, Ordering::SeqCst);
    }

    /// Cuts every connection, and holds nothing back any more.
    pub fn cut_and_go_on(&self) {
        self.hold_at(u64::MAX);
        self.cut();
    }

    pub fn passed(&self) -> u64 {
        self.path.passed.load(Ordering::SeqCst)
    }

    /// Waits until so many bytes went to the receiver.
    pub fn wait_for(&self, bytes: u64) {
        let end = std::time::Instant::now() + super::support::PATIENCE;
        while self.passed() < bytes {
            assert!(std::time::Instant::now() < end, "only {} bytes have passed", self.passed());
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Path {
    fn cut(&self) {
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    /// The first fault that lies before `end`.
    fn fault_before(&self, end: u64) -> Option<Fault> {
        let mut faults = self.faults.lock().unwrap();
        let index = faults.iter().position(|fault| fault.at() < end)?;
        Some(faults.remove(index))
    }
}

fn carry(path: &Path, mut near: TcpStream, mut far: TcpStream) {
    let mut piece = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = near.read(&mut piece) {
        let start = path.passed.fetch_add(count as u64, Ordering::SeqCst);
        while start >= path.most.load(Ordering::SeqCst) && !path.frozen.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        if path.frozen.load(Ordering::SeqCst) {
            // The clones in `open` keep the connections.
            return;
        }
        let mut whole = count;
        if let Some(fault) = path.fault_before(start + count as u64) {
            let place = fault.at().saturating_sub(start) as usize;
            match fault {
                Fault::Flip(_) => piece[place] ^= 1,
                Fault::CutOne(_) | Fault::Stall(_) | Fault::CutAll(_) | Fault::Abandon(_) => whole = place,
            }
            if far.write_all(&piece[..whole]).is_err() {
                break;
            }
            match fault {
                Fault::Flip(_) => continue,
                Fault::CutOne(_) => break,
                Fault::Abandon(_) => {
                    // The clone in `open` keeps the other half.
                    let _ = near.shutdown(Shutdown::Both);
                    return;
                }
                Fault::CutAll(_) => {
                    path.dead.store(true, Ordering::SeqCst);
                    path.cut();
                    break;
                }
                Fault::Stall(_) => {
                    // Reads on and drops it, so that only the other end sees silence; ends when the sender gives up.
                    while matches!(near.read(&mut piece), Ok(1..)) {}
                    break;
                }
            }
        }
        if !path.delay.is_zero() {
            std::thread::sleep(path.delay);
        }
        if far.write_all(&piece[..whole]).is_err() {
            break;
        }
    }
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
}

fn carry_back(mut far: TcpStream, mut near: TcpStream) {
    let _ = std::io::copy(&mut far, &mut near);
    let _ = near.shutdown(Shutdown::Both);
    let _ = far.shutdown(Shutdown::Both);
}
