//! Buffers in memory as the two ends of a transfer.

mod region;
mod sink;
mod source;

pub use region::{OwnedBuffer, TargetBuffer};
pub use sink::{BufferProvider, MemorySink, NamedBuffers};
pub use source::{MemorySource, NamedBuffer, SharedBytes};
