//! Sequences of operations on a sender and a receiver session, as the tests of dwcp-proto interpret bytes.
#![no_main]

#[path = "../../dwcp-proto/tests/sessions/ops.rs"]
mod ops;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    ops::run(data);
});
