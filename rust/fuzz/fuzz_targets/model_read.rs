//! Selector models: arbitrary bytes, and arbitrary sums under right names and a right digest. What is read predicts numbers.
#![no_main]

use dwcp_codec::Digest;
use dwcp_codec::select::{Action, FEATURES, Features, Model};
use libfuzzer_sys::fuzz_target;

fn names(names: &[String], out: &mut Vec<u8>) {
    out.push(names.len() as u8);
    for name in names {
        out.push(name.len() as u8);
        out.extend(name.as_bytes());
    }
}

fuzz_target!(|data: &[u8]| {
    let _ = Model::read(data);
    let mut bytes = b"DWSM\x01".to_vec();
    names(&FEATURES.map(str::to_owned), &mut bytes);
    names(&Action::ALL.map(|action| action.to_string()), &mut bytes);
    // Times for reference, which are as good as any.
    bytes.resize(bytes.len() + 8 * Action::ALL.len(), 0);
    bytes.extend(data);
    // Sums without a tree, for those that are missing: all, all but one, none.
    let mut empty = [0; 13];
    empty[0] = u8::MAX;
    for missing in [3 * Action::ALL.len(), 3 * Action::ALL.len() - 1, 0] {
        let mut bytes = bytes.clone();
        bytes.extend(empty.repeat(missing));
        bytes.extend(Digest::of(&bytes).0);
        let Ok(model) = Model::read(&bytes) else { continue };
        for value in [0.0, 1.0, -1e30, f32::NAN] {
            let predictions = model.predict(&Features::from_values([value; FEATURES.len()]));
            assert!(predictions.iter().all(|told| told.ratio.is_finite() && told.compress_ns_per_byte > 0.0));
        }
    }
});
