//! Who is let in, and what others are told.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use dwcp_net::security::{
    DialSecurity, Identity, ListenSecurity, Pairing, Token, TokenBook, read_certificates,
};
use dwcp_net::{Cancel, Event, Listener, NetError, Observer, SendOptions, SendSession, V1Gate};

use super::support::*;

fn connect(receiver: &Receiver, dial: DialSecurity) -> Result<SendSession, NetError> {
    let log: Arc<dyn Observer> = Arc::new(Log::default());
    SendSession::connect(&receiver.address(), dial, quick_send(), &Cancel::new(), log)
}

/// What [`connect`] fails with.
fn refusal(receiver: &Receiver, dial: DialSecurity) -> NetError {
    match connect(receiver, dial) {
        Ok(_) => panic!("the sender was let in"),
        Err(error) => error,
    }
}

#[test]
fn another_certificate_than_that_of_the_pairing_is_not_trusted() {
    let receiver = paired_receiver();
    let DialSecurity::Paired { token, identity, .. } = receiver.dial.clone() else { unreachable!() };
    let fingerprint = Identity::generate().unwrap().fingerprint();
    let error = refusal(&receiver, DialSecurity::Paired { fingerprint, token, identity });
    assert!(matches!(&error, NetError::Auth { reason } if reason.contains("fingerprint")), "{error:?}");
}

#[test]
fn a_wrong_token_is_refused() {
    let receiver = paired_receiver();
    let DialSecurity::Paired { fingerprint, identity, .. } = receiver.dial.clone() else { unreachable!() };
    let token = Token::from_bytes([1; 32]);
    let error = refusal(&receiver, DialSecurity::Paired { fingerprint, token, identity });
    assert!(matches!(&error, NetError::Auth { reason } if reason.contains("token is wrong")), "{error:?}");
}

#[test]
fn a_token_is_good_for_one_client_only() {
    let receiver = paired_receiver();
    drop(connect(&receiver, receiver.dial.clone()).unwrap());
    drop(connect(&receiver, receiver.dial.clone()).unwrap());
    let DialSecurity::Paired { fingerprint, token, .. } = receiver.dial.clone() else { unreachable!() };
    let identity = Identity::generate().unwrap();
    let error = refusal(&receiver, DialSecurity::Paired { fingerprint, token, identity });
    assert!(matches!(&error, NetError::Auth { reason } if reason.contains("another client")), "{error:?}");
}

#[test]
fn the_pairing_text_leads_to_the_receiver() {
    let identity = Identity::generate().unwrap();
    let token = Token::generate().unwrap();
    let tokens = Arc::new(TokenBook::default());
    tokens.add(token.clone());
    let fingerprint = identity.fingerprint();
    let receiver =
        receiver(ListenSecurity::Paired { identity, tokens }, DialSecurity::Insecure, quick_receive());
    let address = receiver.listener.local_addr();
    let pairing = Pairing { host: address.ip().to_string(), port: address.port(), fingerprint, token };
    let pairing: Pairing = pairing.to_string().parse().unwrap();
    assert_eq!(pairing.address(), receiver.address());
    let identity = Identity::generate().unwrap();
    connect(
        &receiver,
        DialSecurity::Paired { fingerprint: pairing.fingerprint, token: pairing.token, identity },
    )
    .unwrap();
}

/// An authority and what it signs, as files.
struct Authority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    certificate: Vec<u8>,
}

impl Authority {
    fn new() -> Authority {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = params.self_signed(&key).unwrap().der().to_vec();
        Authority { issuer: rcgen::Issuer::new(params, key), certificate }
    }

    /// An identity whose certificate ends with the year `until`.
    fn sign(&self, dir: &Path, until: i32) -> Identity {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new(vec!["host.example".to_owned()]).unwrap();
        params.not_after = rcgen::date_time_ymd(until, 12, 31);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(dir.join("cert.pem"), certificate.pem()).unwrap();
        std::fs::write(dir.join("key.pem"), key.serialize_pem()).unwrap();
        assert_eq!(read_certificates(&dir.join("cert.pem")).unwrap(), [certificate.der().to_vec()]);
        Identity::load_pem(&dir.join("cert.pem"), &dir.join("key.pem")).unwrap()
    }
}

#[test]
fn mutual_tls_takes_valid_certificates_of_the_authority_only() {
    let dir = tempfile::tempdir().unwrap();
    let (ours, foreign) = (Authority::new(), Authority::new());
    let roots = vec![ours.certificate.clone()];
    let identity = ours.sign(dir.path(), 2090);
    let receiver = receiver(
        ListenSecurity::Mutual { identity: identity.clone(), roots: roots.clone() },
        DialSecurity::Insecure,
        quick_receive(),
    );
    let dial = |identity: Identity, roots: &[Vec<u8>], name: &str| DialSecurity::Mutual {
        identity,
        roots: roots.to_vec(),
        server_name: name.to_owned(),
    };
    let received = receiver.receive_one(memory_sink());
    let state = buffers(&[("a", noise(1, 10))], 65_536);
    send_once(&receiver.address(), &dial(identity.clone(), &roots, "host.example"), quick_send(), &state)
        .unwrap();
    join(received).unwrap();
    for (case, security) in [
        ("an expired certificate", dial(ours.sign(dir.path(), 2020), &roots, "host.example")),
        ("a foreign certificate", dial(foreign.sign(dir.path(), 2090), &roots, "host.example")),
        (
            "a foreign receiver",
            dial(identity.clone(), std::slice::from_ref(&foreign.certificate), "host.example"),
        ),
        ("another name", dial(identity.clone(), &roots, "other.example")),
    ] {
        let error = refusal(&receiver, security);
        assert!(matches!(error, NetError::Auth { .. }), "{case}: {error:?}");
    }
    let expired = ListenSecurity::Mutual { identity: ours.sign(dir.path(), 2020), roots: roots.clone() };
    let expired = self::receiver(expired, DialSecurity::Insecure, quick_receive());
    let error = refusal(&expired, dial(identity, &roots, "host.example"));
    assert!(matches!(&error, NetError::Auth { reason } if reason.contains("xpired")), "{error:?}");
}

#[test]
fn plaintext_and_tls_do_not_meet() {
    let receiver = paired_receiver();
    let error = refusal(&receiver, DialSecurity::Insecure);
    assert!(matches!(&error, NetError::Auth { reason } if reason.contains("tls only")), "{error:?}");
    let (_, dial) = pairing();
    let error = refusal(&plain_receiver(), dial);
    assert!(matches!(error, NetError::PeerClosed { .. }), "{error:?}");
}

#[test]
fn strangers_are_turned_away_and_disturb_nobody() {
    let receiver = paired_receiver();
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    for greeting in
        [&b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"[..], &[0; 64], &[0x16; 64], b"DWCP2\n\x03\x03", b"Dear"]
    {
        let mut stream = TcpStream::connect(receiver.listener.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(greeting).unwrap();
        // It fails if the receiver has ended the connection already.
        let _ = stream.shutdown(Shutdown::Write);
        let mut answer = Vec::new();
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut answer);
        assert!(!answer.starts_with(b"DWCP"), "{greeting:?} was answered");
    }
    let turned_away = |event: &Event| matches!(event, Event::Refused { .. } | Event::V1Refused { .. });
    receiver.log.wait_for_some(4, turned_away);
    // The last one left before it had said anything that could be refused.
    assert_eq!(receiver.log.count(turned_away), 4);
    let state = buffers(&[("a", noise(1, 100_000))], 65_536);
    send_once(&receiver.address(), &receiver.dial, quick_send(), &state).unwrap();
    join(received).unwrap();
    // Lanes that come after the end of their session are not strangers.
    assert_eq!(receiver.log.count(turned_away), 4);
}

#[test]
fn a_version_that_is_not_spoken_is_told() {
    let receiver = plain_receiver();
    let mut stream = TcpStream::connect(receiver.listener.local_addr()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(b"DWCP3\n\x04\x09").unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"DWCP3\n\x03\x03");
    receiver.log.wait_for(|event| matches!(event, Event::Refused { reason, .. } if reason.contains("4-9")));
}

#[test]
fn silence_is_not_waited_for_beyond_the_handshake_deadline() {
    let receiver = paired_receiver();
    // One says nothing, one stops in the middle of a TLS record, and one sends a byte now and then.
    let silent = TcpStream::connect(receiver.listener.local_addr()).unwrap();
    let mut half = TcpStream::connect(receiver.listener.local_addr()).unwrap();
    half.write_all(&[0x16, 3, 1, 2, 0, 1]).unwrap();
    let mut slow = TcpStream::connect(receiver.listener.local_addr()).unwrap();
    let dripping = slow.try_clone().unwrap();
    let drip = std::thread::spawn(move || {
        let mut slow = &dripping;
        let mut record = [0x16, 3, 1, 0x3F, 0, 1, 0, 0x3E, 0].into_iter().chain(std::iter::repeat(0));
        while slow.write_all(&[record.next().unwrap()]).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    for mut stream in [silent, half, slow.try_clone().unwrap()] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut answer = Vec::new();
        match stream.read_to_end(&mut answer) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "nobody hung up"),
        }
    }
    let _ = slow.flush();
    drop(slow);
    join(drip);
    assert_eq!(receiver.log.count(|event| matches!(event, Event::Refused { .. })), 3);
}

#[test]
fn a_handshake_message_that_another_record_interrupts_is_refused_as_any_other() {
    let receiver = paired_receiver();
    // A record with the beginning of a ClientHello, and another before its rest.
    let mut beginning = vec![0x16, 3, 1, 1, 8, 1, 0, 0xFF, 0xFF];
    beginning.resize(5 + 0x108, 0);
    let others: [&[u8]; 6] = [
        &[0x15, 3, 3, 0, 2, 2, 40],
        &[0x15, 3, 3, 0, 2, 1, 0],
        &[0x14, 3, 3, 0, 1, 1],
        &[0x17, 3, 3, 0, 1, 0],
        &[0x18, 3, 3, 0, 1, 0],
        &[0x16, 9, 9, 0xFF, 0xFF, 0],
    ];
    for other in others {
        let mut stream = TcpStream::connect(receiver.listener.local_addr()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(&[&beginning, other].concat()).unwrap();
        // A reset is as good an end as any.
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let refused = |event: &Event| matches!(event, Event::Refused { .. });
    receiver.log.wait_for_some(others.len(), refused);
}

#[test]
fn strangers_cannot_take_all_places() {
    let receiver = paired_receiver();
    let _crowd: Vec<_> =
        (0..17).map(|_| TcpStream::connect(receiver.listener.local_addr()).unwrap()).collect();
    receiver
        .log
        .wait_for(|event| matches!(event, Event::Refused { reason, .. } if reason.contains("too many")));
    // Those that are waited for are bounded, too: their places are free again after the deadline.
    let end = std::time::Instant::now() + PATIENCE;
    while connect(&receiver, receiver.dial.clone()).is_err() {
        assert!(std::time::Instant::now() < end, "the places are not given back");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_v1_peer_is_handed_over_untouched_where_it_is_allowed() {
    let (handed, arrived) = mpsc::channel();
    let gate = |network: &str| {
        let handed = handed.clone();
        V1Gate {
            allowed: vec![network.parse().unwrap()],
            serve: Box::new(move |stream, peer| handed.send((stream, peer)).unwrap()),
        }
    };
    let listen = |gate| {
        let log = Arc::new(Log::default());
        let listener = Listener::bind(
            "127.0.0.1:0",
            pairing().0,
            quick_receive(),
            &Cancel::new(),
            log.clone(),
            Some(gate),
        )
        .unwrap();
        (listener, log)
    };
    let (open, _) = listen(gate("127.0.0.0/8"));
    let mut client = TcpStream::connect(open.local_addr()).unwrap();
    client.write_all(&[0, 0, 0, 7, 1, 2, 3]).unwrap();
    let (mut stream, peer) = arrived.recv_timeout(PATIENCE).unwrap();
    assert_eq!(peer, client.local_addr().unwrap());
    assert_eq!((stream.read_timeout().unwrap(), stream.write_timeout().unwrap()), (None, None));
    let mut got = [0; 7];
    stream.read_exact(&mut got).unwrap();
    assert_eq!(got, [0, 0, 0, 7, 1, 2, 3]);

    let (closed, log) = listen(gate("192.0.2.0/24"));
    let mut client = TcpStream::connect(closed.local_addr()).unwrap();
    client.write_all(&[0]).unwrap();
    log.wait_for(|event| matches!(event, Event::V1Refused { .. }));
    assert!(arrived.try_recv().is_err());
}

#[test]
fn waiting_for_a_greeting_can_be_cancelled() {
    // It accepts, in the backlog, and says nothing.
    let mute = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = mute.local_addr().unwrap().to_string();
    for dial in [DialSecurity::Insecure, pairing().1] {
        let cancel = Cancel::new();
        let connecting = {
            let (address, cancel) = (address.clone(), cancel.clone());
            let options = SendOptions { connect_timeout: Duration::from_secs(600), ..quick_send() };
            std::thread::spawn(move || {
                SendSession::connect(&address, dial, options, &cancel, Arc::new(Log::default())).err()
            })
        };
        let _peer = mute.accept().unwrap();
        cancel.cancel();
        assert!(matches!(join(connecting), Some(NetError::Cancelled)));
    }
}

#[test]
fn a_port_where_nobody_listens_is_unreachable() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let log = Arc::new(Log::default());
    let result =
        SendSession::connect(&free.to_string(), DialSecurity::Insecure, quick_send(), &Cancel::new(), log);
    assert!(matches!(result.err(), Some(NetError::Unreachable { .. })));
}
