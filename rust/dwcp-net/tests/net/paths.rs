//! What TCP is told and what it tells.

use std::sync::Arc;
use std::thread::JoinHandle;

use dwcp_net::{Cancel, Congestion, FetchSession, NetError, ReceiveOptions, SendOptions, SendReport};

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
