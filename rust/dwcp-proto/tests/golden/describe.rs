//! Frames as JSON, for those who read the golden bytes without this crate.

use std::fmt::Write;

use dwcp_codec::Digest;
use dwcp_proto::frame::{DictionaryWord, Frame, HaveSource, SessionId};
use dwcp_proto::manifest::Entry;

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A JSON object of members that are JSON already.
pub fn object(members: &[(&str, String)]) -> String {
    let members: Vec<String> = members.iter().map(|(name, value)| format!("\"{name}\": {value}")).collect();
    format!("{{{}}}", members.join(", "))
}

pub fn text(value: impl std::fmt::Display) -> String {
    format!("\"{value}\"")
}

fn hexes(digests: &[Digest]) -> String {
    format!("[{}]", digests.iter().map(text).collect::<Vec<_>>().join(", "))
}

fn describe_entry(entry: &Entry) -> String {
    let candidates: Vec<String> = entry
        .candidates
        .iter()
        .map(|candidate| {
            object(&[("size", candidate.size.to_string()), ("tree_digest", text(candidate.digest))])
        })
        .collect();
    object(&[
        ("kind", (entry.kind as u8).to_string()),
        ("path_hex", text(hex(&entry.path))),
        ("mode", entry.mode.to_string()),
        ("mtime_ns", entry.mtime_ns.to_string()),
        ("size", entry.size.to_string()),
        ("target_hex", text(hex(&entry.target))),
        ("candidates", format!("[{}]", candidates.join(", "))),
    ])
}

pub fn describe(frame: &Frame) -> String {
    match frame {
        Frame::Hello(f) => object(&[
            ("version", f.version.to_string()),
            ("security", (f.security as u8).to_string()),
            ("lane", f.lane.to_string()),
            ("features", (f.features | u32::from(f.fetches.is_some())).to_string()),
            ("session_id", text(f.session.unwrap_or(SessionId([0; 16])))),
            ("secret_hex", text(hex(&f.secret.0))),
            ("most_entries", f.fetches.map_or(0, |takes| takes.max_entries).to_string()),
            ("largest_object", f.fetches.map_or(0, |takes| takes.max_object).to_string()),
            ("largest_block", f.max_block.to_string()),
        ]),
        Frame::Welcome(f) => object(&[
            ("version", f.version.to_string()),
            ("security", (f.security as u8).to_string()),
            ("most_lanes", f.max_lanes.to_string()),
            ("features", f.features.to_string()),
            ("session_id", text(f.session)),
            ("join_key_hex", text(hex(&f.join_key.0))),
            ("largest_block", f.max_block.to_string()),
            ("most_entries", f.max_entries.to_string()),
            ("largest_object", f.max_object.to_string()),
        ]),
        Frame::Offer(f) => object(&[
            ("transfer_id", text(f.transfer_id)),
            ("block_bytes", f.block_bytes.to_string()),
            ("entry_count", f.entries.to_string()),
            ("total_bytes", f.total_bytes.to_string()),
            ("base", u8::from(f.base_allowed).to_string()),
            ("number", f.number.to_string()),
        ]),
        Frame::Manifest(f) => {
            let entries: Vec<String> = f.entries.iter().map(describe_entry).collect();
            object(&[
                ("first_entry", f.first_entry.to_string()),
                ("entries", format!("[{}]", entries.join(", "))),
            ])
        }
        Frame::Have(f) => {
            let (source, candidate) = match f.source {
                HaveSource::Staged => (0, 0),
                HaveSource::SamePath => (1, 0),
                HaveSource::Candidate(number) => (2, number),
            };
            object(&[
                ("entry", f.entry.to_string()),
                ("source", source.to_string()),
                ("candidate", candidate.to_string()),
                ("first_block", f.first_block.to_string()),
                ("digests", hexes(&f.digests)),
            ])
        }
        Frame::Accept(f) => {
            object(&[("transfer_id", text(f.transfer_id)), ("staged_bytes", f.staged_bytes.to_string())])
        }
        Frame::Block(f) => object(&[
            ("entry", f.entry.to_string()),
            ("raw_length", f.raw_len.to_string()),
            ("offset", f.offset.to_string()),
            ("kind", (f.kind as u8).to_string()),
            ("codec", (f.codec as u8).to_string()),
            ("digest", text(f.digest)),
            ("base_digest", text(f.base_digest.unwrap_or(Digest([0; 16])))),
        ]),
        Frame::Same(f) => object(&[
            ("entry", f.entry.to_string()),
            ("first_block", f.first_block.to_string()),
            ("digests", hexes(&f.digests)),
        ]),
        Frame::Ack(count) => object(&[("count", count.to_string())]),
        Frame::Nack(f) => object(&[
            ("entry", f.entry.to_string()),
            ("reason", (f.reason as u8).to_string()),
            ("offset", f.offset.to_string()),
        ]),
        Frame::Digests(f) => {
            object(&[("first_entry", f.first_entry.to_string()), ("digests", hexes(&f.digests))])
        }
        Frame::Finish(f) => {
            object(&[("transfer_id", text(f.transfer_id)), ("transfer_digest", text(f.transfer_digest))])
        }
        Frame::Committed(f) => object(&[
            ("transfer_id", text(f.transfer_id)),
            ("transfer_digest", text(f.transfer_digest)),
            ("body_bytes", f.body_bytes.to_string()),
        ]),
        Frame::Error(f) => object(&[
            ("code", (f.code as u16).to_string()),
            ("retryable", u8::from(f.retryable).to_string()),
            ("text_hex", text(hex(f.message.as_bytes()))),
        ]),
        Frame::Close | Frame::KeepAlive => object(&[]),
        Frame::Fill(length) => object(&[("length", length.to_string())]),
        Frame::Fetch(f) => {
            object(&[("number", f.number.to_string()), ("request_hex", text(hex(&f.request)))])
        }
        Frame::Dictionary(f) => {
            let (word, bytes): (_, &[u8]) = match &f.word {
                DictionaryWord::Announced => (0, &[]),
                DictionaryWord::Wanted => (1, &[]),
                DictionaryWord::Given(bytes) => (2, bytes),
                DictionaryWord::Declined => (3, &[]),
            };
            object(&[
                ("digest", text(f.digest)),
                ("length", f.length.to_string()),
                ("word", word.to_string()),
                ("content_hex", text(hex(bytes))),
            ])
        }
        // Those of relays were made by hand.
        Frame::Relay(_) | Frame::Base(_) | Frame::Record(_) | Frame::Taken(_) => object(&[]),
    }
}
