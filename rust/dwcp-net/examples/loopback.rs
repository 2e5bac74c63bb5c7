//! How fast this crate moves incompressible bytes from one thread to another over the loopback interface.
//!
//! `cargo run --release -p dwcp-net --example loopback [MIB] [LANES]`

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use dwcp_net::security::{DialSecurity, Identity, ListenSecurity, Token, TokenBook};
use dwcp_net::{Cancel, Listener, ReceiveOptions, SendOptions, SendSession, Unobserved};
use dwcp_proto::Limits;
use dwcp_store::{MemorySink, MemorySource, SharedBytes};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mib: usize = arguments.next().map_or(Ok(512), |text| text.parse())?;
    let lanes: u16 = arguments.next().map_or(Ok(4), |text| text.parse())?;
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
    for (name, listen, dial) in [
        ("plaintext", ListenSecurity::Insecure, DialSecurity::Insecure),
        ("tls", ListenSecurity::Paired { identity, tokens }, dial),
    ] {
        let cancel = Cancel::new();
        let options = ReceiveOptions::default();
        let listener = Listener::bind("127.0.0.1:0", listen, options, &cancel, Arc::new(Unobserved), None)?;
        let address = listener.local_addr().to_string();
        let receiving = std::thread::spawn(move || {
            let session = listener.accept(None)?;
            while session.receive(Arc::new(MemorySink::new(u64::MAX)), None)?.is_some() {}
            Ok::<_, dwcp_net::NetError>(())
        });
        let options = SendOptions { lanes, ..SendOptions::default() };
        let session = SendSession::connect(&address, dial, options, &cancel, Arc::new(Unobserved))?;
        for _ in 0..3 {
            let (manifest, source) = MemorySource::new(
                vec![("bytes".to_owned(), Arc::clone(&bytes))],
                1 << 20,
                &Limits::default(),
            )?;
            let report = session.send(Arc::new(manifest), Arc::new(source))?;
            let rate = report.bytes_raw as f64 / report.seconds / 1e9;
            writeln!(
                std::io::stdout(),
                "{name}: {rate:.2} GB/s, {:.2} s processor time",
                report.cpu_seconds
            )?;
        }
        session.close();
        receiving.join().map_err(|_| "the receiver panicked")??;
    }
    Ok(())
}
