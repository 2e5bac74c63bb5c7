//! What TCP is told and what it tells.

use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_net::{
    Cancel, Congestion, Event, FetchSession, NetError, ReceiveOptions, SendOptions, SendReport, SendSession,
};

use super::fetching::{accepted, fetch, quick_fetch};
use super::support::*;

/// Has a peer fetch 2 MB, and gives what the side reports that sent.
fn serve_once(serve: SendOptions) -> Result<SendReport, NetError> {
    let (listen, dial) = pairing();
    let options = ReceiveOptions { senders: false, serve: Some(serve), ..quick_receive() };
    let server = receiver(listen, dial, options);
    let serving: JoinHandle<Result<SendReport, NetError>> = {
        let server = Receiver {
            listener: Arc::clone(&server.listener),
            cancel: server.cancel.clone(),
            log: Arc::clone(&server.log),
            dial: server.dial.clone(),
        };
        std::thread::spawn(move || {
            let session = accepted(&server)?;
            session.next_request(Some(PATIENCE))?;
            let (manifest, source) = buffers(&[("a", noise(5, 2_000_000))], 65_536);
            session.send(manifest, source)
        })
    };
    let log = Arc::new(Log::default());
    let session =
        FetchSession::connect(&server.address(), server.dial.clone(), quick_fetch(), &Cancel::new(), log)?;
    fetch(&session, b"")?;
    join(serving)
}

fn send_noise(options: SendOptions) -> Result<SendReport, NetError> {
    let receiver = paired_receiver();
    let received = receiver.receive_one(memory_sink());
    let state = buffers(&[("a", noise(5, 2_000_000))], 65_536);
    let sent = send_once(&receiver.address(), &receiver.dial, options, &state)?;
    join(received)?;
    Ok(sent)
}

#[cfg(target_os = "linux")]
#[test]
fn whoever_sends_uses_the_congestion_control_that_was_asked_for_and_tells_what_the_path_showed() {
    // Every Linux has this one, and it is nobody's default.
    let options = SendOptions { congestion: "reno".parse().unwrap(), ..quick_send() };
    for report in [send_noise(options.clone()).unwrap(), serve_once(options).unwrap()] {
        let path = report.path.unwrap();
        assert_eq!(path.congestion, ["reno"]);
        assert!(path.rtt_ms > 0.0 && path.rtt_ms < 1_000.0 && path.cwnd_bytes > 0, "{path:?}");
        assert!(path.sent_bytes.is_none_or(|sent| sent >= report.bytes_wire), "{path:?}");
        if let Some(limits) = path.limits {
            let sum = limits.cwnd + limits.rwnd + limits.sndbuf + limits.application;
            assert!((sum - 1.0).abs() < 0.01, "{limits:?}");
        }
    }
}

#[test]
fn a_congestion_control_that_is_not_to_be_had_is_refused_before_anybody_is_dialled() {
    let options = SendOptions { congestion: Congestion::Named("no_such".to_owned()), ..quick_send() };
    let refused = |error: NetError| matches!(error, NetError::Congestion { name, .. } if name == "no_such");
    let (receiver, log) = (plain_receiver(), Arc::new(Log::default()));
    let sent =
        send_once(&receiver.address(), &receiver.dial, options.clone(), &buffers(&[("a", vec![1])], 65_536));
    assert!(refused(sent.unwrap_err()));
    let options = ReceiveOptions { serve: Some(options), ..quick_receive() };
    let (listen, _) = pairing();
    let bound = dwcp_net::Listener::bind("127.0.0.1:0", listen, options, &Cancel::new(), log, None);
    assert!(refused(bound.err().unwrap()));
}

#[test]
fn a_receiver_that_refuses_is_tried_by_one_lane_for_all() {
    const LANES: u16 = 8;
    let receiver = plain_receiver();
    let (address, local) = (receiver.address(), receiver.listener.local_addr());
    let log = Arc::new(Log::default());
    let options = SendOptions {
        lanes: LANES,
        reconnect_for: Duration::from_millis(1_500),
        bandwidth_limit: Some(2_000_000),
        ..quick_send()
    };
    let received = receiver.receive_one(memory_sink());
    let sending = {
        let (log, dial) = (log.clone(), receiver.dial.clone());
        std::thread::spawn(move || {
            let (manifest, source) = buffers(&[("a", noise(6, 8_000_000))], 65_536);
            let session = SendSession::connect(&address, dial, options, &Cancel::new(), log)?;
            session.send(manifest, source)
        })
    };
    log.wait_for_some(usize::from(LANES), |event| matches!(event, Event::LaneUp { .. }));
    receiver.cancel.cancel();
    assert!(join(received).is_err());
    drop(receiver);
    // In the place of the receiver, somebody who takes connections and ends them after a while.
    let refuser = TcpListener::bind(local).unwrap();
    refuser.set_nonblocking(true).unwrap();
    let mut connections = 0;
    let end = Instant::now() + PATIENCE;
    let mut held = Vec::new();
    while !sending.is_finished() {
        assert!(Instant::now() < end, "the sender does not give up");
        if let Ok((stream, _)) = refuser.accept() {
            connections += 1;
            held.push((Instant::now(), stream));
        }
        held.retain(|(since, _)| since.elapsed() < Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(join(sending).unwrap_err().resumable());
    // Each lane for itself would try about five times in that time.
    assert!((2..=2 * usize::from(LANES) + 4).contains(&connections), "{connections} connections");
}

/// A way to `target` that takes connections only from addresses that are not in `dead`, and tells how many came from
/// where.
struct Gate {
    local: SocketAddr,
    dead: Arc<Mutex<Vec<IpAddr>>>,
    passed: Arc<Mutex<Vec<(IpAddr, TcpStream, TcpStream)>>>,
}

impl Gate {
    fn new(target: SocketAddr) -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let local = listener.local_addr().unwrap();
        let (dead, passed) = (Arc::<Mutex<Vec<IpAddr>>>::default(), Arc::<Mutex<Vec<_>>>::default());
        let gate = Gate { local, dead: Arc::clone(&dead), passed: Arc::clone(&passed) };
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let from = stream.peer_addr().unwrap().ip();
                let mut passed = passed.lock().unwrap();
                if dead.lock().unwrap().contains(&from) {
                    continue;
                }
                let Ok(onward) = TcpStream::connect(target) else { continue };
                for (mut a, mut b) in [
                    (stream.try_clone().unwrap(), onward.try_clone().unwrap()),
                    (onward.try_clone().unwrap(), stream.try_clone().unwrap()),
                ] {
                    std::thread::spawn(move || {
                        // One side that is gone ends the other.
                        let _ = std::io::copy(&mut a, &mut b);
                        let _ = b.shutdown(Shutdown::Both);
                    });
                }
                passed.push((from, stream, onward));
            }
        });
        gate
    }

    fn count(&self, from: IpAddr) -> usize {
        self.passed.lock().unwrap().iter().filter(|(address, ..)| *address == from).count()
    }

    /// Cuts what comes from `from`, now and from now on.
    fn kill(&self, from: IpAddr) {
        let passed = self.passed.lock().unwrap();
        self.dead.lock().unwrap().push(from);
        for (_, here, there) in passed.iter().filter(|(address, ..)| *address == from) {
            let _ = here.shutdown(Shutdown::Both);
            let _ = there.shutdown(Shutdown::Both);
        }
    }
}

#[cfg(target_os = "linux")] // Elsewhere the machine has only one of these addresses.
#[test]
fn lanes_come_from_all_local_addresses_and_move_to_those_that_are_left() {
    let [good, bad, foreign] = ["127.0.0.2", "127.0.0.3", "192.0.2.1"].map(|text| text.parse().unwrap());
    let receiver = paired_receiver();
    let gate = Gate::new(receiver.listener.local_addr());
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let bytes = noise(9, 6_000_000);
    let options = SendOptions {
        local_addresses: vec![good, bad, foreign],
        bandwidth_limit: Some(6_000_000),
        ..quick_send()
    };
    let log = Arc::new(Log::default());
    let sending = {
        let (address, dial, log) = (gate.local.to_string(), receiver.dial.clone(), log.clone());
        let state = buffers(&[("a", bytes.clone())], 65_536);
        std::thread::spawn(move || {
            let session = SendSession::connect(&address, dial, options, &Cancel::new(), log)?;
            session.send(state.0, state.1)
        })
    };
    log.wait_for_some(4, |event| matches!(event, Event::LaneUp { .. }));
    // The second lane has the second address, and what the third cannot do the first does, whose lanes are 0 and 3.
    assert_eq!((gate.count(good), gate.count(bad)), (3, 1));
    gate.kill(bad);
    let sent = join(sending).unwrap();
    join(received).unwrap();
    assert!(contents(&sink) == [("a".to_owned(), bytes)]);
    assert_eq!((sent.lanes_lost, sent.lanes_used, gate.count(good)), (1, 5, 4));
}

#[test]
fn local_addresses_of_which_none_is_of_this_machine_are_refused() {
    let receiver = plain_receiver();
    let options = SendOptions { local_addresses: vec!["192.0.2.1".parse().unwrap()], ..quick_send() };
    let state = buffers(&[("a", vec![1])], 65_536);
    let error = send_once(&receiver.address(), &receiver.dial, options, &state).unwrap_err();
    assert!(matches!(error, NetError::LocalAddress { .. }), "{error:?}");
}

#[test]
fn a_rate_that_is_lifted_lets_a_transfer_that_waits_go_on() {
    let receiver = plain_receiver();
    let received = receiver.receive_one(memory_sink());
    let log = Arc::new(Log::default());
    // At this rate it would take hours.
    let options = SendOptions { bandwidth_limit: Some(1_000), ..quick_send() };
    let session =
        SendSession::connect(&receiver.address(), receiver.dial.clone(), options, &Cancel::new(), log)
            .unwrap();
    let session = Arc::new(session);
    let sending = {
        let session = Arc::clone(&session);
        let (manifest, source) = buffers(&[("a", noise(7, 8_000_000))], 65_536);
        std::thread::spawn(move || session.send(manifest, source))
    };
    let end = Instant::now() + PATIENCE;
    while session.progress().lanes < 4 {
        assert!(Instant::now() < end, "no lanes");
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(session.progress().state_bytes_done < 8_000_000);
    session.set_bandwidth_limit(None);
    join(sending).unwrap();
    join(received).unwrap();
}
