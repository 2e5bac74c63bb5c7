//! The receiver's record of staged blocks: a list of places to look at, never proof.

use dwcp_codec::Digest;
use dwcp_codec::digest::check64;

use crate::error::ProtoError;
use crate::id::TransferId;
use crate::limits::{MAX_BLOCK, MIN_BLOCK};
use crate::wire::Reader;

/// Length of the header, and of each record.
pub const RECORD_BYTES: usize = 32;

const MAGIC: [u8; 4] = *b"DWCL";
const VERSION: u64 = 1;

/// What a ledger is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LedgerHeader {
    /// The transfer.
    pub transfer_id: TransferId,
    /// The block size in bytes.
    pub block_bytes: u32,
}

/// One block that was verified and written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// The entry.
    pub entry: u32,
    /// The number of the block in its object.
    pub block: u32,
    /// The digest of the block.
    pub digest: Digest,
}

/// The bytes of a header.
#[must_use]
pub fn encode_header(header: &LedgerHeader) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..4].copy_from_slice(&MAGIC);
    bytes[4] = VERSION as u8;
    bytes[8..24].copy_from_slice(&header.transfer_id.0);
    bytes[24..28].copy_from_slice(&header.block_bytes.to_le_bytes());
    bytes
}

/// Reads a header.
///
/// # Errors
/// [`ProtoError`] when it is not one of version 1.
pub fn decode_header(bytes: &[u8]) -> Result<LedgerHeader, ProtoError> {
    let mut reader = Reader::new("ledger header", bytes);
    if reader.array()? != MAGIC {
        return Err(ProtoError::Magic { what: "ledger" });
    }
    reader.number("version", 1, VERSION..=VERSION)?;
    reader.zeros("reserved", 3)?;
    let transfer_id = TransferId(reader.array()?);
    let block_bytes = reader.number("block_bytes", 4, u64::from(MIN_BLOCK)..=u64::from(MAX_BLOCK))? as u32;
    reader.zeros("reserved", 4)?;
    reader.finish()?;
    Ok(LedgerHeader { transfer_id, block_bytes })
}

/// The bytes of a record.
#[must_use]
pub fn encode_record(record: &Record) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..4].copy_from_slice(&record.entry.to_le_bytes());
    bytes[4..8].copy_from_slice(&record.block.to_le_bytes());
    bytes[8..24].copy_from_slice(&record.digest.0);
    let check = check64(0, &[&bytes[..24]]);
    bytes[24..].copy_from_slice(&check.to_le_bytes());
    bytes
}

fn decode_record(bytes: &[u8]) -> Option<Record> {
    let mut reader = Reader::new("ledger record", bytes);
    let record =
        Record { entry: reader.u32().ok()?, block: reader.u32().ok()?, digest: reader.digest().ok()? };
    (reader.u64().ok()? == check64(0, &[&bytes[..24]])).then_some(record)
}

/// The header, the records up to the first that a crash tore, and whether there is such a one.
///
/// # Errors
/// [`ProtoError`] when the header is not one of version 1.
pub fn read(bytes: &[u8]) -> Result<(LedgerHeader, Vec<Record>, bool), ProtoError> {
    let (header, rest) = bytes.split_at(bytes.len().min(RECORD_BYTES));
    let header = decode_header(header)?;
    let records: Vec<Record> = rest.chunks(RECORD_BYTES).map_while(decode_record).collect();
    let torn = records.len() * RECORD_BYTES != rest.len();
    Ok((header, records, torn))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (LedgerHeader, Vec<Record>, Vec<u8>) {
        let header = LedgerHeader { transfer_id: TransferId([7; 16]), block_bytes: 65_536 };
        let records: Vec<Record> =
            (0..5).map(|i| Record { entry: i, block: i * 3, digest: Digest::of(&[i as u8]) }).collect();
        let mut bytes = encode_header(&header).to_vec();
        records.iter().for_each(|record| bytes.extend(encode_record(record)));
        (header, records, bytes)
    }

    #[test]
    fn ledger_is_read_back() {
        let (header, records, bytes) = sample();
        assert_eq!(read(&bytes), Ok((header, records, false)));
    }

    #[test]
    fn torn_tail_ends_the_ledger() {
        let (header, records, bytes) = sample();
        for cut in 1..RECORD_BYTES {
            assert_eq!(read(&bytes[..bytes.len() - cut]), Ok((header, records[..4].to_vec(), true)));
        }
    }

    #[test]
    fn altered_record_ends_the_ledger_and_altered_header_is_refused() {
        let (_, records, bytes) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut altered = bytes.clone();
            altered[bit / 8] ^= 1 << (bit % 8);
            match read(&altered) {
                Ok((_, read_records, torn)) if bit / 8 >= RECORD_BYTES => {
                    assert!(torn);
                    assert_eq!(read_records, records[..(bit / 8 - RECORD_BYTES) / RECORD_BYTES]);
                }
                // The header has no check: another id or block size makes it the ledger of another transfer.
                Ok((header, ..)) => assert_ne!(header, sample().0),
                Err(_) => assert!(bit / 8 < RECORD_BYTES),
            }
        }
    }
}
