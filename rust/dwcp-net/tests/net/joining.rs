//! Lanes that join a session do not wait until they are let in: what they say goes right behind their greeting.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Sender, channel};

use dwcp_codec::Digest;
use dwcp_net::SendOptions;
use dwcp_net::security::DialSecurity;
use dwcp_proto::frame::{
    Accept, Committed, ErrorCode, ErrorFrame, Frame, Secret, Security, SessionId, Welcome,
};
use dwcp_proto::{FrameDecoder, FrameEncoder, preface};

use super::hostile::{Hand, block, numbered_hello};
use super::support::*;

#[test]
fn blocks_right_behind_the_greeting_of_a_lane_that_joins_are_taken() {
    let bytes = noise(8, 131_072);
    let receiver = plain_receiver();
    let received = receiver.receive_one(memory_sink());
    let mut first = Hand::enter(&receiver);
    first.offer(&bytes);
    let welcome = first.welcome.clone().unwrap();
    let mut second = Hand::connect(&receiver);
    let mut said = second.encode(&numbered_hello(1, Some(welcome.session), welcome.join_key), &[]);
    second.encoder.set_session(&welcome.session);
    for (half, offset) in bytes.chunks(65_536).zip([0, 65_536]) {
        said.extend(second.encode(&block(half, offset, Digest::of(half)), half));
    }
    second.stream.write_all(&said).unwrap();
    assert!(matches!(second.recv(), Frame::Welcome(_)));
    first.finish(&bytes);
    assert_eq!(join(received).unwrap().blocks_received, 2);
}

/// A receiver's end of a lane, made by hand.
struct Ear {
    stream: TcpStream,
    encoder: FrameEncoder,
    decoder: FrameDecoder,
}

const SESSION: SessionId = SessionId([1; 16]);

impl Ear {
    /// Reads what a connection says first.
    fn of(mut stream: TcpStream) -> (Ear, Frame) {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.read_exact(&mut [0; 8]).unwrap();
        stream.write_all(&preface::encode(3, 3)).unwrap();
        let mut ear = Ear { stream, encoder: FrameEncoder::new(), decoder: FrameDecoder::new() };
        let hello = ear.recv();
        ear.decoder.set_session(&SESSION);
        (ear, hello)
    }

    /// The next frame; its body is passed over.
    fn recv(&mut self) -> Frame {
        let mut header = [0; 24];
        self.stream.read_exact(&mut header).unwrap();
        let pending = self.decoder.header(&header).unwrap();
        let mut head = vec![0; pending.head_len];
        self.stream.read_exact(&mut head).unwrap();
        self.stream.read_exact(&mut vec![0; pending.body_len]).unwrap();
        self.decoder.head(pending, &head).unwrap()
    }

    /// The offset of the next block.
    fn block(&mut self) -> u64 {
        loop {
            if let Frame::Block(head) = self.recv() {
                return head.offset;
            }
        }
    }

    fn say(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        self.encoder.encode(frame, 0, &mut bytes).unwrap();
        self.stream.write_all(&bytes).unwrap();
    }

    fn welcome(&mut self) {
        let (version, security) = (3, Security::Plaintext);
        self.say(&Frame::Welcome(Welcome {
            version,
            security,
            max_lanes: 2,
            features: 0,
            session: SESSION,
            join_key: Secret([2; 32]),
            max_block: 65_536,
            max_entries: 10,
            max_object: 1 << 30,
        }));
        self.encoder.set_session(&SESSION);
    }
}

/// Lets one lane in, turns the other away when a block has come on it, and says what that block was. Takes the transfer
/// once that block has come again, on the lane that is there.
fn turn_the_second_away(listener: TcpListener, told: &Sender<u64>) {
    let (mut first, _) = Ear::of(listener.accept().unwrap().0);
    first.welcome();
    let Frame::Offer(offer) = first.recv() else { panic!("no offer") };
    assert!(matches!(first.recv(), Frame::Manifest(_)));
    first.say(&Frame::Accept(Accept { transfer_id: offer.transfer_id, staged_bytes: 0 }));
    let (mut second, hello) = Ear::of(listener.accept().unwrap().0);
    assert!(matches!(hello, Frame::Hello(hello) if hello.session == Some(SESSION)));
    let early = second.block();
    // It is not asked again.
    drop(listener);
    second.say(&Frame::Error(ErrorFrame::new(ErrorCode::Limit, true, "there is no room")));
    drop(second);
    told.send(early).unwrap();
    while first.block() != early {}
    let transfer_digest = loop {
        if let Frame::Finish(finish) = first.recv() {
            break finish.transfer_digest;
        }
    };
    first.say(&Frame::Committed(Committed {
        transfer_id: offer.transfer_id,
        transfer_digest,
        body_bytes: 0,
    }));
    while first.recv() != Frame::Close {}
}

#[test]
fn block_that_went_on_a_lane_that_was_not_let_in_goes_on_another() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let (tell, told) = channel();
    let receiving = std::thread::spawn(move || turn_the_second_away(listener, &tell));
    let sending = std::thread::spawn(move || {
        // Slow enough for the second lane to come while there is something left.
        let options = SendOptions { lanes: 2, bandwidth_limit: Some(4_000_000), ..quick_send() };
        let state = buffers(&[("a", noise(9, 6_000_000))], 65_536);
        send_once(&address, &DialSecurity::Insecure, options, &state)
    });
    told.recv_timeout(PATIENCE).unwrap();
    let sent = join(sending).unwrap();
    assert_eq!((sent.lanes_used, sent.lanes_lost, sent.sessions), (1, 0, 1));
    assert!(sent.blocks_resent >= 1, "{sent:?}");
    join(receiving);
}
