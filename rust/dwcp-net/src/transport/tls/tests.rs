//! Records that are cut anywhere.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};

use super::*;
use crate::security::{
    DialSecurity, Identity, ListenSecurity, Ticket, Token, TokenBook, client_config, server_config,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Passes on what comes, in pieces that have nothing to do with records.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    let mut bytes = [0; 20_000];
    for length in [1, 7, 3_000, 20_000, 90, 16_406].into_iter().cycle() {
        match from.read(&mut bytes[..length]) {
            Ok(count) if count > 0 && to.write_all(&bytes[..count]).is_ok() => {}
            _ => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

#[test]
fn bytes_are_taken_in_order_whichever_way_and_wherever_records_are_cut() {
    let (identity, token) = (Identity::generate().unwrap(), Token::generate().unwrap());
    let fingerprint = identity.fingerprint();
    let tokens = Arc::new(TokenBook::new(vec![Ticket::new(token.clone(), None)]));
    let server = server_config(&ListenSecurity::Paired { identity: identity.clone(), tokens });
    let client = client_config(&DialSecurity::Paired { fingerprint, token, identity });
    let (server, (client, name)) = (server.unwrap().unwrap(), client.unwrap().unwrap());
    let [listener, relay] = [0, 1].map(|_| TcpListener::bind("127.0.0.1:0").unwrap());
    let (there, way) = (listener.local_addr().unwrap(), relay.local_addr().unwrap());
    let content: Vec<u8> = (0..400_000_usize).map(|at| (at % 251) as u8 ^ (at >> 10) as u8).collect();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let (near, far) = (relay.accept().unwrap().0, TcpStream::connect(there).unwrap());
            let back = (far.try_clone().unwrap(), near.try_clone().unwrap());
            std::thread::scope(|scope| {
                scope.spawn(|| pass_on(back.0, back.1));
                pass_on(near, far);
            });
        });
        scope.spawn(|| {
            let tcp = TcpTransport::new(TcpStream::connect(way).unwrap()).unwrap();
            let patience = Patience::for_time(PATIENCE);
            let mut tls = TlsTransport::connect(tcp, client, name, patience).unwrap();
            for piece in content.chunks(50_001) {
                tls.send(&[piece], patience).unwrap();
            }
            tls.finish(PATIENCE);
        });
        let tcp = TcpTransport::new(listener.accept().unwrap().0).unwrap();
        let patience = Patience::for_time(PATIENCE);
        let mut tls = TlsTransport::accept(tcp, server, patience).unwrap();
        let (mut got, mut step) = (vec![0; content.len()], 0);
        let mut done = 0;
        while done < got.len() {
            step += 1;
            let length = [40_000, 3, 5_000, 100_000][step % 4].min(got.len() - done);
            let place = &mut got[done..done + length];
            done += match step % 3 {
                0 => tls.recv_exact(place, patience).map(|()| length).unwrap(),
                1 => {
                    while !tls.gather(Duration::from_millis(100)).unwrap() {
                        patience.check(Instant::now(), "bytes").unwrap();
                    }
                    tls.take(place, patience).unwrap()
                }
                _ => tls.poll_readable(Duration::from_millis(1), None).map(|_| 0).unwrap(),
            };
        }
        assert!(got == content);
        assert!(matches!(
            tls.gather(PATIENCE).and_then(|_| tls.take(&mut [0], patience)),
            Err(NetError::PeerClosed { .. })
        ));
    });
}
