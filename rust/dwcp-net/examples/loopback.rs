//! How fast this crate moves incompressible bytes from one thread to another over the loopback interface, into memory
//! that is there already.
//!
//! `cargo run --release -p dwcp-net --example loopback [MIB] [LANES] [plaintext|tls|both] [ROUNDS]`

use std::error::Error;
use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dwcp_net::security::{DialSecurity, Identity, ListenSecurity, Token, TokenBook};
use dwcp_net::{Cancel, Listener, NetError, ReceiveOptions, SendOptions, SendSession, Unobserved};
use dwcp_proto::Limits;
use dwcp_store::{
    BufferProvider, MemorySink, MemorySource, OwnedBuffer, SharedBytes, StoreError, TargetBuffer,
};
use rustix::time::{ClockId, clock_gettime};

/// A buffer that is received into again and again, as a process that takes every version of a state would do.
#[derive(Clone, Default)]
struct Reused(Arc<Mutex<Option<Box<dyn TargetBuffer>>>>);

impl Reused {
    fn swap(&self, buffer: Option<Box<dyn TargetBuffer>>) -> Option<Box<dyn TargetBuffer>> {
        std::mem::replace(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner), buffer)
    }
}

impl BufferProvider for Reused {
    fn provide(&self, _name: &str, size: u64) -> Result<Box<dyn TargetBuffer>, StoreError> {
        match self.swap(None) {
            Some(buffer) => Ok(buffer),
            None => Ok(Box::new(OwnedBuffer::zeroed(size)?)),
        }
    }
}

/// Takes transfers until the sender says goodbye.
fn receive(listener: &Listener) -> Result<(), NetError> {
    let session = listener.accept(None)?;
    let memory = Reused::default();
    loop {
        let sink = Arc::new(MemorySink::with_provider(u64::MAX, Box::new(memory.clone())));
        if session.receive(sink.clone(), None)?.is_none() {
            return Ok(());
        }
        let mut buffers = sink.take_buffers()?;
        memory.swap(buffers.pop().map(|(_, buffer)| buffer));
    }
}

/// Processor time of all threads.
fn processor_seconds() -> f64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let lanes: u16 = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let wanted = arguments.next().unwrap_or_else(|| "both".to_owned());
    let rounds: u32 = arguments.next().map_or(Ok(4), |text| text.parse())?;
    let mut state = 1_u64;
    let bytes: Vec<u8> = std::iter::repeat_with(|| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    })
    .take(mib << 20)
    .collect();
    let bytes: SharedBytes = Arc::new(bytes);

    let identity = Identity::generate()?;
    let token = Token::generate()?;
    let tokens = Arc::new(TokenBook::default());
    tokens.add(token.clone());
    let dial =
        DialSecurity::Paired { fingerprint: identity.fingerprint(), token, identity: Identity::generate()? };
    let cases = [
        ("plaintext", ListenSecurity::Insecure, DialSecurity::Insecure),
        ("tls", ListenSecurity::Paired { identity, tokens }, dial),
    ];
    for (name, listen, dial) in cases.into_iter().filter(|case| wanted == "both" || wanted == case.0) {
        let cancel = Cancel::new();
        let options = ReceiveOptions::default();
        let listener = Listener::bind("127.0.0.1:0", listen, options, &cancel, Arc::new(Unobserved), None)?;
        let address = listener.local_addr().to_string();
        let receiving = std::thread::spawn(move || receive(&listener));
        let options = SendOptions { lanes, ..SendOptions::default() };
        let session = SendSession::connect(&address, dial, options, &cancel, Arc::new(Unobserved))?;
        // The first round makes the memory and the lanes.
        for round in 0..=rounds {
            let named = vec![("bytes".to_owned(), Arc::clone(&bytes))];
            let (manifest, source) = MemorySource::new(named, 1 << 20, &Limits::default())?;
            let (start, processor) = (Instant::now(), processor_seconds());
            session.send(Arc::new(manifest), Arc::new(source))?;
            let (taken, used) = (start.elapsed().as_secs_f64(), processor_seconds() - processor);
            let gigabytes = (mib << 20) as f64 / 1e9;
            if round > 0 {
                let (rate, cost) = (gigabytes / taken, used / gigabytes);
                writeln!(std::io::stdout(), "{name}: {rate:.2} GB/s, {cost:.3} s processor time per GB")?;
            }
        }
        session.close();
        receiving.join().map_err(|_| "the receiver panicked")??;
    }
    Ok(())
}
