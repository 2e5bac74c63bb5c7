//! What a user pastes or configures: pairing strings, addresses, networks, and kept identities. What is taken reads the
//! same when it is written again.
#![no_main]

use dwcp_net::Cidr;
use dwcp_net::security::{Identity, Pairing, split_address};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(identity) = Identity::from_blob(data) {
        assert_eq!(
            Identity::from_blob(&identity.to_blob()).expect("it was taken").fingerprint(),
            identity.fingerprint()
        );
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(pairing) = text.parse::<Pairing>() {
        let again = pairing.to_string();
        assert!(text.trim().len() >= again.len(), "{text:?} became {again:?}");
        let second: Pairing = again.parse().expect("what is written can be read");
        assert_eq!(second.to_string(), again);
        assert_eq!(second.token.to_bytes(), pairing.token.to_bytes());
        assert_eq!(
            split_address(&pairing.address()).expect("it is an address"),
            (pairing.host, pairing.port)
        );
        assert!(format!("{second:?}").contains("Token(..)"));
    }
    if let Ok((host, _)) = split_address(text) {
        assert!(!host.is_empty() && host.len() <= 255 && !host.contains(char::is_whitespace));
    }
    if let Ok(network) = text.parse::<Cidr>() {
        let again: Cidr = network.to_string().parse().expect("what is written can be read");
        assert_eq!(again, network);
    }
});
