//! Probes of the way to a receiver.

use std::time::Duration;

use dwcp_net::{Cancel, NetError, ProbeOptions, probe};

use crate::support::{
    PATIENCE, buffers, connect, contents, join, memory_sink, noise, paired_receiver, plain_receiver,
};

fn options() -> ProbeOptions {
    ProbeOptions {
        lanes: 3,
        burst_for: Duration::from_secs(5),
        burst_bytes: 8 << 20,
        connect_timeout: PATIENCE,
        local_addresses: Vec::new(),
        links: Vec::new(),
    }
}

#[test]
fn probe_tells_of_the_way_and_leaves_nothing_behind() {
    for receiver in [paired_receiver(), plain_receiver()] {
        // The receiver has a session of which nothing came, and then one that brings something.
        let sink = memory_sink();
        let receiving = receiver.receive_first(sink.clone());
        let seen = probe(&receiver.address(), &receiver.dial, &options(), &Cancel::new()).unwrap();
        assert_eq!(seen.lanes, 3);
        assert!(seen.handshake > Duration::ZERO && !seen.is_relayed);
        if cfg!(target_os = "linux") {
            let (calm, burst) = (seen.calm.unwrap(), seen.burst.unwrap());
            // Sixteen times where the machine has time for it.
            assert!(calm.rtt_ms > 0.0 && calm.sent_bytes >= Some(4 * 4096), "{calm:?}");
            // All lanes together, with one in a hundred for frames and TLS.
            let sent = burst.sent_bytes.unwrap() - burst.retransmitted_bytes.unwrap_or(0);
            assert!((7 << 20..(8 << 20) * 101 / 100).contains(&sent), "{burst:?}");
            assert!(seen.counts.last().unwrap().1.arrived_bytes > 7 << 20, "{:?}", seen.counts);
        }
        let left = join(receiving).unwrap_err();
        assert!(
            matches!(left, NetError::PeerClosed { phase: "idle", .. }),
            "it left in peace, not with {left}"
        );
        // What the token or the certificate was good for it still is.
        let receiving = receiver.receive_one(sink.clone());
        let session = connect(&receiver.address(), &receiver.dial);
        let (manifest, source) = buffers(&[("a", noise(1, 100_000))], 65_536);
        session.send(manifest, source).unwrap();
        join(receiving).unwrap();
        assert_eq!(contents(&sink), [("a".to_owned(), noise(1, 100_000))]);
    }
}

#[test]
fn probe_of_nobody_and_of_what_does_not_answer_ends_with_an_error() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let receiver = plain_receiver();
    let told = probe(&nobody, &receiver.dial, &options(), &Cancel::new());
    assert!(matches!(told, Err(NetError::Unreachable { .. })), "{told:?}");
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let short = ProbeOptions { connect_timeout: Duration::from_millis(200), ..options() };
    let address = silent.local_addr().unwrap().to_string();
    let told = probe(&address, &receiver.dial, &short, &Cancel::new());
    assert!(matches!(told, Err(NetError::Deadline { .. })), "{told:?}");
    let none = ProbeOptions { lanes: 0, ..options() };
    assert!(matches!(
        probe(&address, &receiver.dial, &none, &Cancel::new()),
        Err(NetError::Option { name: "lanes", .. })
    ));
}
