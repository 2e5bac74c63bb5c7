//! Base64url without padding for values of 32 bytes.

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// The characters of 32 bytes.
pub(super) const TEXT_CHARS: usize = 43;

/// The 43 characters of `bytes`.
pub(super) fn encode(bytes: &[u8; 32]) -> String {
    let mut text = String::with_capacity(TEXT_CHARS);
    for chunk in bytes.chunks(3) {
        let mut group = [0; 3];
        group[..chunk.len()].copy_from_slice(chunk);
        let bits = u32::from_be_bytes([0, group[0], group[1], group[2]]);
        for place in 0..=chunk.len() {
            text.push(char::from(ALPHABET[(bits >> (18 - 6 * place) & 63) as usize]));
        }
    }
    text
}

/// The bytes of 43 characters; `None` for any other text, and for one whose last character has bits to spare.
pub(super) fn decode(text: &str) -> Option<[u8; 32]> {
    if text.len() != TEXT_CHARS {
        return None;
    }
    let (mut bytes, mut at, mut bits, mut held) = ([0; 32], 0, 0_u32, 0);
    for character in text.bytes() {
        let value = ALPHABET.iter().position(|&known| known == character)?;
        bits = bits << 6 | value as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes[at] = (bits >> held) as u8;
            at += 1;
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_rfc_4648_and_read_back() {
        assert_eq!(encode(&[0; 32]), "A".repeat(43));
        assert_eq!(encode(&[0xFF; 32]), format!("{}8", "_".repeat(42)));
        let bytes = std::array::from_fn(|i| (i * 37 + 5) as u8);
        assert_eq!(decode(&encode(&bytes)), Some(bytes));
    }

    #[test]
    fn every_value_has_one_text() {
        assert_eq!(decode(&format!("{}B", "A".repeat(42))), None);
        assert_eq!(decode(&"+".repeat(43)), None);
        assert_eq!(decode(&"A".repeat(42)), None);
    }
}
