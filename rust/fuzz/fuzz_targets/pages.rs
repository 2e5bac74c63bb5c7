//! Pages: any numbers and sizes; what is gathered is put back where it was, and what is refused writes nothing.
#![no_main]

use dwcp_codec::pages::{gather, scatter};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((&[page, count, wide], rest)) = data.split_first_chunk() else { return };
    let page_bytes = usize::from(page);
    let (numbers, memory) = rest.split_at(rest.len().min(usize::from(count)));
    let wide = if wide % 16 == 0 { u64::MAX / 2 } else { 1 };
    let numbers: Vec<u64> = numbers.iter().map(|number| u64::from(*number).wrapping_mul(wide)).collect();
    let mut together = Vec::new();
    let gathered = gather(memory, page_bytes, numbers.iter().copied(), &mut together);
    let mut other = vec![0x55; memory.len()];
    if gathered.is_ok() {
        assert_eq!(together.len(), numbers.len() * page_bytes);
        assert_eq!(scatter(&together, page_bytes, numbers.iter().copied(), &mut other), Ok(()));
        for (at, byte) in other.iter().enumerate() {
            let named = page_bytes > 0 && numbers.contains(&((at / page_bytes) as u64));
            assert_eq!(*byte, if named { memory[at] } else { 0x55 });
        }
    } else {
        together.resize(numbers.len() * page_bytes, 0);
        assert!(scatter(&together, page_bytes, numbers.iter().copied(), &mut other).is_err());
        assert!(other.iter().all(|byte| *byte == 0x55));
    }
});
