//! Transfers over paths that work.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use dwcp_codec::Codec;
use dwcp_codec::block::BlockKind;
use dwcp_codec::select::Action;
use dwcp_net::{Cancel, CodecChoice, SendOptions, SendReport, SendSession};
use dwcp_store::{BaseChoice, Source};

use super::link::{Fault, Link};
use super::support::*;

#[test]
fn a_tree_arrives_over_four_tls_lanes() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let state = from.path().join("state");
    fs::create_dir_all(state.join("deep/er")).unwrap();
    fs::write(state.join("big"), noise(1, 3_000_001)).unwrap();
    fs::write(state.join("deep/er/text"), b"word ".repeat(50_000)).unwrap();
    fs::write(state.join("empty"), b"").unwrap();
    std::os::unix::fs::symlink("big", state.join("link")).unwrap();
    let receiver = paired_receiver();
    let received = receiver.receive_one(tree_sink(to.path().to_path_buf()));

    let (manifest, source) = tree(&state, BaseChoice::None);
    let options = SendOptions { codec: CodecChoice::Fixed(Codec::Zstd { level: 1 }), ..quick_send() };
    let sent = send_once(&receiver.address(), &receiver.dial, options, &(manifest, source)).unwrap();
    let received = join(received).unwrap();

    for file in ["big", "deep/er/text", "empty"] {
        let (old, new) =
            (fs::read(state.join(file)).unwrap(), fs::read(to.path().join("state").join(file)).unwrap());
        assert!(old == new, "{file} differs");
    }
    assert_eq!(fs::read_link(to.path().join("state/link")).unwrap().to_str(), Some("big"));
    assert_eq!(sent.transfer_digest, received.transfer_digest);
    assert_eq!((sent.bytes_raw, sent.entries), (3_250_001, 7));
    assert_eq!((sent.blocks_sent, sent.blocks_resent, sent.sessions, sent.lanes_lost), (50, 0, 1, 0));
    assert_eq!((received.blocks_received, received.bytes_wire), (sent.blocks_sent, sent.bytes_wire));
    // The text has shrunk and the noise has not grown.
    assert!((3_000_001..3_050_000).contains(&sent.bytes_wire), "{}", sent.bytes_wire);
    assert!(sent.lanes_used >= 1 && sent.lanes_used <= 4 && sent.rtt_ms.is_some());
}

#[test]
fn buffers_follow_each_other_on_one_session_in_plaintext() {
    let receiver = plain_receiver();
    let sinks = [memory_sink(), memory_sink(), memory_sink()];
    let states = [
        vec![("a", noise(2, 200_000)), ("b", vec![0; 500_000]), ("empty", Vec::new())],
        vec![("a", noise(3, 1))],
        vec![("c", noise(4, 2_000_000))],
    ];
    let serving = {
        let (listener, sinks) = (Arc::clone(&receiver.listener), sinks.clone());
        std::thread::spawn(move || {
            let session = listener.accept(Some(PATIENCE)).unwrap();
            for sink in sinks {
                session.receive(sink, Some(PATIENCE)).unwrap().unwrap();
            }
            session.receive(memory_sink(), Some(PATIENCE)).unwrap()
        })
    };
    let cancel = Cancel::new();
    let log = Arc::new(Log::default());
    let session =
        SendSession::connect(&receiver.address(), receiver.dial.clone(), quick_send(), &cancel, log).unwrap();
    for state in &states {
        let (manifest, source) = buffers(state, 65_536);
        let report = session.send(manifest, source).unwrap();
        assert_eq!(report.sessions, 1);
        if state.len() == 3 {
            let fill = report.codec_mix.iter().find(|share| share.kind == BlockKind::Fill).unwrap();
            assert_eq!((fill.blocks, fill.raw_bytes, fill.wire_bytes), (8, 500_000, 8));
        }
    }
    session.close();
    assert!(join(serving).is_none(), "the end of the session is not a transfer");
    for (sink, state) in sinks.iter().zip(&states) {
        let expected: Vec<_> =
            state.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        assert!(contents(sink) == expected);
    }
}

#[test]
fn an_offer_right_after_a_commit_waits_for_a_sink_of_its_own() {
    let receiver = plain_receiver();
    let serving = {
        let listener = Arc::clone(&receiver.listener);
        std::thread::spawn(move || {
            let session = listener.accept(Some(PATIENCE)).unwrap();
            let mut received = Vec::new();
            loop {
                let sink = memory_sink();
                match session.receive(sink.clone(), Some(PATIENCE)).unwrap() {
                    Some(_) => received.push(contents(&sink).remove(0).1),
                    None => return received,
                }
            }
        })
    };
    let session = connect(&receiver.address(), &receiver.dial);
    let states: Vec<Vec<u8>> = (0..60).map(|seed| noise(seed, 70_000)).collect();
    for bytes in &states {
        let (manifest, source) = buffers(&[("a", bytes.clone())], 65_536);
        session.send(manifest, source).unwrap();
    }
    session.close();
    assert!(join(serving) == states);
}

#[test]
fn several_senders_of_buffers_with_the_same_name_and_size_do_not_end_each_other() {
    let receiver = plain_receiver();
    let pairs: Vec<_> = (0..3)
        .map(|seed| {
            let sink = memory_sink();
            let received = receiver.receive_first(sink.clone());
            let address = receiver.address();
            let sending = std::thread::spawn(move || {
                let state = buffers(&[("a", noise(seed, 1_000_000))], 65_536);
                send_once(&address, &dwcp_net::security::DialSecurity::Insecure, quick_send(), &state)
            });
            (sink, received, sending)
        })
        .collect();
    let mut arrived = Vec::new();
    for (sink, received, sending) in pairs {
        join(sending).unwrap();
        join(received).unwrap();
        arrived.push(contents(&sink).remove(0).1);
    }
    arrived.sort();
    let mut sent: Vec<_> = (0..3).map(|seed| noise(seed, 1_000_000)).collect();
    sent.sort();
    assert!(arrived == sent);
}

#[test]
fn what_is_staged_of_another_state_with_the_same_names_is_replaced() {
    let receiver = plain_receiver();
    let sink = memory_sink();
    let (old, new) = (noise(21, 2_000_000), noise(22, 2_000_000));
    let link =
        Link::new(receiver.listener.local_addr(), Duration::from_millis(1), &[Fault::CutAll(1_500_000)]);
    let received = receiver.receive_one(sink.clone());
    let options = SendOptions { reconnect_for: Duration::from_millis(100), ..quick_send() };
    send_once(&link.address(), &receiver.dial, options, &buffers(&[("a", old)], 65_536)).unwrap_err();
    let sent =
        send_once(&receiver.address(), &receiver.dial, quick_send(), &buffers(&[("a", new.clone())], 65_536));
    join(received).unwrap();
    assert_eq!(sent.unwrap().bytes_held, 0);
    assert!(contents(&sink) == [("a".to_owned(), new)]);
}

#[test]
fn a_session_outlives_a_receiver_between_two_transfers() {
    let (listen, dial) = pairing();
    let first = receiver(listen.clone(), dial, quick_receive());
    let address = first.address();
    let session = connect(&address, &first.dial);
    for receiver in [Some(first), None] {
        let receiver = receiver.unwrap_or_else(|| {
            let dial = dwcp_net::security::DialSecurity::Insecure;
            receiver_at(&address, listen.clone(), dial, quick_receive())
        });
        let sink = memory_sink();
        let received = receiver.receive_one(sink.clone());
        let (manifest, source) = buffers(&[("a", noise(1, 200_000))], 65_536);
        session.send(manifest, source).unwrap();
        join(received).unwrap();
        receiver.cancel.cancel();
    }
}

#[test]
fn a_changed_file_goes_as_its_difference_to_the_base() {
    let from = tempfile::tempdir().unwrap();
    let to = tempfile::tempdir().unwrap();
    let image = from.path().join("image");
    let mut bytes = noise(5, 2_000_000);
    fs::write(&image, &bytes).unwrap();
    let receiver = paired_receiver();
    let sink = tree_sink(to.path().to_path_buf());

    let received = receiver.receive_one(sink.clone());
    let (manifest, source) = tree(&image, BaseChoice::None);
    let source: Arc<dyn Source> = source;
    send_once(&receiver.address(), &receiver.dial, quick_send(), &(manifest, source)).unwrap();
    join(received).unwrap();

    // The old version stays beside the new one, as a base that both sides hold.
    fs::rename(&image, from.path().join("old")).unwrap();
    for at in (0..bytes.len()).step_by(500_000) {
        bytes[at] ^= 0xFF;
    }
    fs::write(&image, &bytes).unwrap();
    let received = receiver.receive_one(sink);
    let (manifest, source) = tree(&image, BaseChoice::Paths(vec![from.path().join("old")]));
    let source: Arc<dyn Source> = source;
    let sent = send_once(&receiver.address(), &receiver.dial, quick_send(), &(manifest, source)).unwrap();
    join(received).unwrap();
    assert!(fs::read(to.path().join("image")).unwrap() == bytes);
    let changed = sent.codec_mix.iter().find(|share| share.kind.needs_base()).unwrap();
    assert_eq!((changed.blocks, sent.blocks_sent, sent.blocks_same), (4, 4, 27));
    assert!(sent.bytes_wire < 1_000, "{}", sent.bytes_wire);
}

#[test]
fn the_rate_is_kept_by_all_lanes_together() {
    let receiver = plain_receiver();
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let state = buffers(&[("a", noise(6, 1_000_000))], 65_536);
    let options = SendOptions { bandwidth_limit: Some(2_000_000), ..quick_send() };
    let sent = send_once(&receiver.address(), &receiver.dial, options, &state).unwrap();
    join(received).unwrap();
    // A lower bound cannot fail on a slow machine.
    assert!(sent.seconds > 0.4, "{} s", sent.seconds);
}

/// Sends `contents` with a codec for each block through `link_delay` for each piece of 16 KiB; gives the report.
fn send_with_choice(contents: &[(&str, Vec<u8>)], link_delay: Duration) -> SendReport {
    let receiver = plain_receiver();
    let sink = memory_sink();
    let received = receiver.receive_one(sink.clone());
    let link = Link::new(receiver.listener.local_addr(), link_delay, &[]);
    let options = SendOptions { codec: CodecChoice::Auto { model: None }, lanes: 2, ..quick_send() };
    let sent = send_once(&link.address(), &receiver.dial, options, &buffers(contents, 65_536)).unwrap();
    join(received).unwrap();
    let arrived = super::support::contents(&sink);
    for ((name, bytes), (arrived_name, arrived)) in contents.iter().zip(&arrived) {
        assert!(name == arrived_name && bytes == arrived, "{name} differs");
    }
    sent
}

#[test]
fn codec_of_each_block_follows_content_and_link_and_is_accounted_for() {
    let text = b"what is said again and again in other words of the same few ".repeat(70_000);
    let contents = [("noise", noise(7, 1_000_000)), ("text", text), ("zeros", vec![0; 300_000])];
    let sent = send_with_choice(&contents, Duration::from_millis(4));
    let selection = sent.selection.unwrap();
    let shares = &selection.summary.actions;
    let raw = shares.iter().map(|share| share.raw_bytes).sum::<u64>();
    // Blocks that are one repeated byte are nobody's choice.
    let fill = sent.codec_mix.iter().find(|share| share.kind == BlockKind::Fill).unwrap();
    assert_eq!(raw + fill.raw_bytes, sent.bytes_sent_raw);
    assert_eq!(shares.iter().map(|share| share.blocks).sum::<u64>() + fill.blocks, sent.blocks_sent);
    assert_eq!(selection.summary.reasons.iter().sum::<u64>() + fill.blocks, sent.blocks_sent);
    assert!(shares[Action::None.index()].raw_bytes >= 900_000, "{shares:?}");
    // At 4 MB a second it would be foolish not to compress the text.
    assert!(sent.bytes_wire < sent.bytes_sent_raw / 2, "{} {shares:?}", sent.bytes_wire);
    // What it measured on this machine is not for a test to say.
    assert!(selection.summary.link_bytes_per_s.unwrap() > 0.0);
}

#[test]
fn selection_of_a_second_transfer_does_not_count_the_first_again() {
    let receiver = plain_receiver();
    let options = SendOptions { codec: CodecChoice::Auto { model: None }, lanes: 1, ..quick_send() };
    let serving = {
        let listener = Arc::clone(&receiver.listener);
        std::thread::spawn(move || {
            let session = listener.accept(Some(PATIENCE)).unwrap();
            while session.receive(memory_sink(), Some(PATIENCE)).unwrap().is_some() {}
        })
    };
    let log = Arc::new(Log::default());
    let session =
        SendSession::connect(&receiver.address(), receiver.dial.clone(), options, &Cancel::new(), log)
            .unwrap();
    for (number, length) in [(1, 655_360), (2, 131_072)] {
        let (manifest, source) = buffers(&[("a", noise(number, length))], 65_536);
        let summary = session.send(manifest, source).unwrap().selection.unwrap().summary;
        let raw = summary.actions.iter().map(|share| share.raw_bytes).sum::<u64>();
        assert_eq!(raw, length as u64);
    }
    session.close();
    join(serving);
}
