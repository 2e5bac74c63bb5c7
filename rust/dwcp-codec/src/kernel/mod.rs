//! Loops over whole blocks, in the widest instructions that the processor has.

pub(crate) mod element;
pub(crate) mod planes;
