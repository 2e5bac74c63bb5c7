# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
# cython: freethreading_compatible=True, auto_pickle=False, autotestdict=False
"""The v1 engine: placing chunks, comparing blocks and applying deltas, all without the GIL.

Every call is coarse: it takes whole buffers, checks every length before it allocates, and raises the
package's typed errors. Objects here are not locked; a caller that shares one holds its own lock.
"""

import mmap

from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport int64_t, uint32_t, uint64_t, uint8_t
from libc.string cimport memcmp, memcpy

from dwcp_fast.errors import BaseMismatchError, FormatError, LimitExceededError

AMST_HEADER_BYTES = 16
MSTCP_HEADER_BYTES = 8
MAX_CHUNKS = 1 << 20

cdef Py_ssize_t BLOCK = 4096
cdef Py_ssize_t OP_BYTES = 17
cdef Py_ssize_t CHUNK_LIMIT = 1 << 20
cdef Py_ssize_t ZSTD_BLOCK = 1 << 17


cdef inline uint32_t load_u32(const uint8_t* at) noexcept nogil:
    return (<uint32_t>at[0] << 24) | (<uint32_t>at[1] << 16) | (<uint32_t>at[2] << 8) | at[3]


cdef inline uint64_t load_u64(const uint8_t* at) noexcept nogil:
    return (<uint64_t>load_u32(at) << 32) | load_u32(at + 4)


cdef inline uint64_t load_little(const uint8_t* at, Py_ssize_t count) noexcept nogil:
    cdef uint64_t value = 0
    cdef Py_ssize_t index
    for index in range(count):
        value |= <uint64_t>at[index] << (8 * index)
    return value


cdef inline void store_u32(uint8_t* at, uint32_t value) noexcept nogil:
    at[0] = value >> 24
    at[1] = value >> 16
    at[2] = value >> 8
    at[3] = value


cdef inline void store_u64(uint8_t* at, uint64_t value) noexcept nogil:
    store_u32(at, <uint32_t>(value >> 32))
    store_u32(at + 4, <uint32_t>value)


cdef class AmstAssembly:
    """One v1-amst transfer being put together from chunks that come in any order on any stream.

    Storage is an anonymous mapping of the announced size, made only once that size is within
    `max_bytes`: pages that no chunk was written to take no memory.
    """

    cdef readonly Py_ssize_t max_bytes
    cdef readonly Py_ssize_t total
    cdef readonly Py_ssize_t arrived
    cdef readonly Py_ssize_t chunks
    cdef Py_ssize_t reserved
    cdef Py_ssize_t highest
    cdef dict starts
    cdef dict ends
    cdef object storage

    def __init__(self, Py_ssize_t max_bytes):
        if max_bytes < 1:
            raise ValueError(f"max_bytes {max_bytes} is below 1")
        self.max_bytes = max_bytes
        self.total = 0
        self.arrived = 0
        self.chunks = 0
        self.reserved = 0
        self.highest = -1
        self.starts = {}
        self.ends = {}
        self.storage = None

    @property
    def complete(self):
        """Whether every byte of the announced total is in place."""
        return self.total > 0 and self.arrived == self.total

    def reserve(self, const uint8_t[::1] header not None):
        """Check one 16-byte chunk header against all others and claim its place; give (offset, length)."""
        if header.shape[0] != 16:
            raise FormatError(f"chunk header of {header.shape[0]} bytes, not 16")
        cdef Py_ssize_t number = load_u32(&header[0])
        cdef Py_ssize_t offset = load_u32(&header[4])
        cdef Py_ssize_t length = load_u32(&header[8])
        cdef Py_ssize_t total = load_u32(&header[12])
        if total == 0:
            raise FormatError("transfer size 0: v1 has no empty transfer")
        if total > self.max_bytes:
            raise LimitExceededError(f"transfer of {total} bytes is above the limit of {self.max_bytes}")
        if self.total and total != self.total:
            raise FormatError(f"transfer size {total} differs from {self.total} in an earlier chunk")
        if length == 0:
            raise FormatError(f"chunk {number} has length 0")
        if offset + length > total:
            raise FormatError(f"chunk {number} ends at {offset + length}, beyond the transfer size {total}")
        if number >= CHUNK_LIMIT:
            raise LimitExceededError(f"chunk number {number} is above the limit of {CHUNK_LIMIT - 1}")
        if number in self.starts:
            raise FormatError(f"chunk {number} comes twice")
        if (number == 0) != (offset == 0):
            raise FormatError(f"chunk {number} at offset {offset}: numbers do not follow offsets")
        if self.ends.get(number - 1, offset) != offset:
            raise FormatError(f"chunk {number} does not begin where chunk {number - 1} ends")
        if self.starts.get(number + 1, offset + length) != offset + length:
            raise FormatError(f"chunk {number} does not end where chunk {number + 1} begins")
        if self.reserved + length > total:
            raise FormatError(f"chunk {number} overlaps another: more than {total} bytes announced")
        if self.reserved + length == total and self.chunks != (self.highest if self.highest > number else number):
            raise FormatError(f"chunk numbers have a gap: {self.chunks + 1} chunks, highest number above that")
        if self.storage is None:
            try:
                self.storage = mmap.mmap(-1, total, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            except OSError as exc:
                raise LimitExceededError(f"no memory for a transfer of {total} bytes") from exc
            self.total = total
        self.starts[number] = offset
        self.ends[number] = offset + length
        self.reserved += length
        self.chunks += 1
        if number > self.highest:
            self.highest = number
        return offset, length

    def region(self, Py_ssize_t offset, Py_ssize_t length):
        """The writable place of a reserved chunk."""
        if self.storage is None or offset < 0 or length < 0 or offset + length > self.total:
            raise ValueError(f"no reserved place at {offset} of {length} bytes")
        return memoryview(self.storage)[offset:offset + length]

    def commit(self, Py_ssize_t length):
        """Count `length` bytes of a reserved chunk as arrived."""
        if length < 0 or self.arrived + length > self.reserved:
            raise ValueError(f"{length} bytes were not reserved")
        self.arrived += length

    def feed(self, const uint8_t[::1] stream not None, Py_ssize_t position=0):
        """Place the chunks of one captured stream; stop when the transfer is complete; give the position."""
        cdef Py_ssize_t size = stream.shape[0]
        cdef Py_ssize_t offset, length
        cdef uint8_t[::1] target = None
        while position < size and not (self.total > 0 and self.arrived == self.total):
            if size - position < 16:
                raise FormatError(f"stream ends {size - position} bytes into a chunk header of 16")
            offset, length = self.reserve(stream[position:position + 16])
            position += 16
            if size - position < length:
                raise FormatError(f"stream ends {size - position} bytes into a chunk of {length}")
            if target is None:
                target = self.storage
            with nogil:
                memcpy(&target[offset], &stream[position], length)
            self.arrived += length
            position += length
        return position

    def discard(self):
        """Let the storage go; views that were handed out keep it until they go too."""
        self.storage = None
        self.starts.clear()
        self.ends.clear()

    def content(self):
        """Give the finished transfer as a read-only view; FormatError when bytes are missing."""
        if self.total == 0:
            raise FormatError("no data: every stream ended without a byte")
        if self.arrived != self.total or self.storage is None:
            raise FormatError(f"transfer ended after {self.arrived} of {self.total} bytes")
        return memoryview(self.storage).toreadonly()


def place_mstcp(
    const uint8_t[::1] stream not None,
    Py_ssize_t position,
    uint8_t[::1] target not None,
    uint8_t[::1] seen not None,
    Py_ssize_t chunk_bytes,
    Py_ssize_t streams,
    Py_ssize_t residue,
):
    """Place the chunks that one stream owes to one v1-mstcp message; give the position after them.

    `seen` has one byte per chunk of the message. The stream carries the chunks whose number is
    `residue` modulo `streams`, in any order.
    """
    cdef Py_ssize_t size = stream.shape[0]
    cdef Py_ssize_t total = target.shape[0]
    cdef Py_ssize_t count = seen.shape[0]
    if chunk_bytes < 1 or streams < 1 or residue < 0 or position < 0:
        raise ValueError("chunk_bytes and streams are at least 1, residue and position at least 0")
    if count != (total + chunk_bytes - 1) // chunk_bytes:
        raise ValueError(f"{count} marks for {total} bytes in chunks of {chunk_bytes}")
    cdef Py_ssize_t owed = 0 if residue >= count else (count - residue + streams - 1) // streams
    cdef Py_ssize_t number = 0
    cdef Py_ssize_t length = 0
    cdef Py_ssize_t expected = 0
    cdef int fault = 0
    with nogil:
        while owed > 0:
            if size - position < 8:
                fault = 1
                break
            number = load_u32(&stream[position])
            length = load_u32(&stream[position + 4])
            position += 8
            if number >= count or number % streams != residue:
                fault = 2
                break
            if seen[number]:
                fault = 3
                break
            expected = total - number * chunk_bytes
            if expected > chunk_bytes:
                expected = chunk_bytes
            if length != expected:
                fault = 4
                break
            if size - position < length:
                fault = 5
                break
            memcpy(&target[number * chunk_bytes], &stream[position], length)
            seen[number] = 1
            position += length
            owed -= 1
    if fault == 1:
        raise FormatError(f"stream ends with {owed} chunks of the message still to come")
    if fault == 2:
        raise FormatError(f"chunk {number} does not belong on stream {residue} of {streams}, {count} chunks")
    if fault == 3:
        raise FormatError(f"chunk {number} comes twice")
    if fault == 4:
        raise FormatError(f"chunk {number} has length {length}, not {expected}")
    if fault == 5:
        raise FormatError(f"stream ends {size - position} bytes into a chunk of {length}")
    return position


def encode_block_delta(
    bytes key not None,
    const uint8_t[::1] base not None,
    const uint8_t[::1] current not None,
    Py_ssize_t limit,
):
    """Write the v1-hde delta body of `current` against `base`, or give None when it is above `limit` bytes."""
    cdef Py_ssize_t base_size = base.shape[0]
    cdef Py_ssize_t size = current.shape[0]
    cdef Py_ssize_t key_size = len(key)
    if size == 0 or base_size == 0:
        return None
    cdef Py_ssize_t count = (size + BLOCK - 1) // BLOCK
    cdef Py_ssize_t body_size = key_size + 5 + count * OP_BYTES
    if count > 0xFFFFFFFF or body_size > limit:
        return None
    cdef bytearray changed = bytearray(count)
    cdef uint8_t[::1] kinds = changed
    cdef Py_ssize_t index, at, length, base_length
    with nogil:
        for index in range(count):
            at = index * BLOCK
            length = size - at if size - at < BLOCK else BLOCK
            base_length = base_size - at if base_size - at < BLOCK else BLOCK
            if base_length <= 0:
                kinds[index] = 1
            elif base_length != length or memcmp(&base[at], &current[at], length) != 0:
                kinds[index] = 2
            else:
                continue
            body_size += 4 + length
            if body_size > limit:
                break
    if body_size > limit:
        return None
    cdef bytes body = PyBytes_FromStringAndSize(NULL, body_size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AsString(body)
    cdef const char* key_at = PyBytes_AsString(key)
    with nogil:
        memcpy(out, key_at, key_size)
        out += key_size
        out[0] = 0
        store_u32(out + 1, <uint32_t>count)
        out += 5
        for index in range(count):
            at = index * BLOCK
            length = size - at if size - at < BLOCK else BLOCK
            out[0] = kinds[index]
            store_u64(out + 1, at)
            store_u64(out + 9, length)
            out += OP_BYTES
            if kinds[index]:
                store_u32(out, <uint32_t>length)
                memcpy(out + 4, &current[at], length)
                out += 4 + length
    return body


def apply_block_delta(
    const uint8_t[::1] body not None,
    bytes key not None,
    const uint8_t[::1] base not None,
    Py_ssize_t max_bytes,
):
    """Check a whole v1-hde delta body, then apply it to `base`.

    Strict: the key must be `key`, every operation is the next 4096-byte block, only the last may be
    shorter, copies lie inside the base, adds beyond it, and no byte is left over.
    """
    cdef Py_ssize_t size = body.shape[0]
    cdef Py_ssize_t base_size = base.shape[0]
    cdef Py_ssize_t position = 0
    while position < size and body[position] != 0:
        position += 1
    if position == size:
        raise FormatError(f"delta body of {size} bytes has no zero byte after its key")
    cdef bytes named = bytes(body[:position])
    if named != key:
        raise BaseMismatchError(f"delta is for baseline {named[:64]!r}, not {key[:64]!r}")
    position += 1
    if size - position < 4:
        raise FormatError("delta body ends inside its operation count")
    cdef Py_ssize_t count = load_u32(&body[position])
    position += 4
    if count == 0 or count > (size - position) // OP_BYTES:
        raise FormatError(f"delta of {count} operations in {size - position} bytes")
    cdef Py_ssize_t first = position
    cdef Py_ssize_t index = 0
    cdef Py_ssize_t total = 0
    cdef int64_t offset = 0
    cdef int64_t length = 0
    cdef uint8_t kind = 0
    cdef int fault = 0
    with nogil:
        for index in range(count):
            if size - position < OP_BYTES:
                fault = 1
                break
            kind = body[position]
            offset = <int64_t>load_u64(&body[position + 1])
            length = <int64_t>load_u64(&body[position + 9])
            position += OP_BYTES
            if kind > 2:
                fault = 2
                break
            if offset != index * BLOCK:
                fault = 3
                break
            if length < 1 or length > BLOCK or (length < BLOCK and index != count - 1):
                fault = 4
                break
            if kind == 0:
                if offset + length > base_size:
                    fault = 5
                    break
            else:
                if (kind == 1) != (offset >= base_size):
                    fault = 6
                    break
                if size - position < 4:
                    fault = 1
                    break
                if load_u32(&body[position]) != length:
                    fault = 7
                    break
                position += 4
                if size - position < length:
                    fault = 1
                    break
                position += length
            total += length
            if total > max_bytes:
                fault = 8
                break
    if fault == 8:
        raise LimitExceededError(f"delta gives more than the limit of {max_bytes} bytes")
    if fault == 0 and position != size:
        raise FormatError(f"{size - position} bytes after the last delta operation")
    if fault:
        raise FormatError(
            f"delta operation {index}: "
            + (
                "",
                "body ends inside it",
                f"type {kind} is above 2",
                f"offset {offset} is not that of the next block, {index * BLOCK}",
                f"length {length} is not in 1..{BLOCK}, or short before the last",
                f"copy ends at {offset + length}, beyond the baseline of {base_size} bytes",
                f"type {kind} at offset {offset} of a baseline of {base_size} bytes",
                f"data length differs from the length {length}",
            )[fault]
        )
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total)
    cdef uint8_t* out = <uint8_t*>PyBytes_AsString(result)
    position = first
    with nogil:
        for index in range(count):
            kind = body[position]
            length = <int64_t>load_u64(&body[position + 9])
            position += OP_BYTES
            if kind == 0:
                memcpy(out, &base[index * BLOCK], length)
            else:
                memcpy(out, &body[position + 4], length)
                position += 4 + length
            out += length
    return result


def xor_longest(const uint8_t[::1] base not None, const uint8_t[::1] current not None):
    """XOR the common part and append the tail of the longer buffer, as v1's xor body is laid out."""
    cdef Py_ssize_t common = min(base.shape[0], current.shape[0])
    cdef Py_ssize_t size = max(base.shape[0], current.shape[0])
    cdef bytes result = PyBytes_FromStringAndSize(NULL, size)
    cdef uint8_t* out = <uint8_t*>PyBytes_AsString(result)
    cdef Py_ssize_t index
    with nogil:
        for index in range(common):
            out[index] = base[index] ^ current[index]
        if size > common:
            if base.shape[0] > common:
                memcpy(out + common, &base[common], size - common)
            else:
                memcpy(out + common, &current[common], size - common)
    return result


def apply_rsync(
    const uint8_t[::1] body not None,
    const uint8_t[::1] base not None,
    Py_ssize_t block_bytes,
    Py_ssize_t original_bytes,
):
    """Run the copy and literal instructions of a v1 rsync body; the result must have `original_bytes`."""
    if block_bytes < 1 or original_bytes < 0:
        raise ValueError(f"block_bytes {block_bytes} and original_bytes {original_bytes} must not be negative")
    cdef Py_ssize_t size = body.shape[0]
    cdef Py_ssize_t base_size = base.shape[0]
    cdef Py_ssize_t position = 0
    cdef Py_ssize_t total = 0
    cdef Py_ssize_t value = 0
    cdef int fault = 0
    with nogil:
        while position < size:
            if size - position < 5:
                fault = 1
                break
            value = load_u32(&body[position + 1])
            if body[position] == 0xFF:
                if value + block_bytes > base_size:
                    fault = 2
                    break
                total += block_bytes
                position += 5
            elif body[position] == 0:
                if size - position - 5 < value:
                    fault = 1
                    break
                total += value
                position += 5 + value
            else:
                fault = 3
                break
            if total > original_bytes:
                fault = 4
                break
    if fault == 1:
        raise FormatError(f"rsync body of {size} bytes ends inside an instruction at {position}")
    if fault == 2:
        raise FormatError(f"copy of {block_bytes} bytes at {value} is beyond the baseline of {base_size} bytes")
    if fault == 3:
        raise FormatError(f"unknown rsync instruction {body[position]:#04x} at {position}")
    if fault == 4 or total != original_bytes:
        raise FormatError(f"rsync body gives {total} bytes or more, not {original_bytes}")
    cdef bytes result = PyBytes_FromStringAndSize(NULL, total)
    cdef uint8_t* out = <uint8_t*>PyBytes_AsString(result)
    position = 0
    with nogil:
        while position < size:
            value = load_u32(&body[position + 1])
            if body[position] == 0xFF:
                memcpy(out, &base[value], block_bytes)
                out += block_bytes
                position += 5
            else:
                memcpy(out, &body[position + 5], value)
                out += value
                position += 5 + value
    return result


def measure_zstd_frame(const uint8_t[::1] data not None):
    """Walk one zstd frame without decoding it.

    Gives (frame bytes, least content, most content, declared content or -1, window, dictionary ID).
    The two bounds come from the block headers, so a declared size can be checked before it is allocated.
    """
    cdef Py_ssize_t size = data.shape[0]
    if size < 6 or load_little(&data[0], 4) != 0xFD2FB528:
        raise FormatError("payload is not a zstd frame")
    cdef uint8_t descriptor = data[4]
    if descriptor & 0x08:
        raise FormatError("zstd frame header has its reserved bit set")
    cdef bint single = descriptor & 0x20 != 0
    cdef Py_ssize_t dictionary_bytes = (0, 1, 2, 4)[descriptor & 3]
    cdef Py_ssize_t declared_bytes = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    cdef Py_ssize_t position = 5
    if size < position + (not single) + dictionary_bytes + declared_bytes + 3:
        raise FormatError(f"zstd frame of {size} bytes ends inside its header")
    cdef uint64_t window = 0
    if not single:
        window = <uint64_t>1 << (10 + (data[position] >> 3))
        window += (window >> 3) * (data[position] & 7)
        position += 1
    cdef uint64_t dictionary = load_little(&data[position], dictionary_bytes)
    position += dictionary_bytes
    cdef uint64_t declared = load_little(&data[position], declared_bytes)
    if declared_bytes == 2:
        declared += 256
    position += declared_bytes
    if declared_bytes and declared > <uint64_t>0x7FFFFFFFFFFFFFFF:
        raise FormatError(f"zstd frame declares {declared} bytes")
    if single:
        window = declared
    cdef Py_ssize_t block_limit = ZSTD_BLOCK if window > <uint64_t>ZSTD_BLOCK else <Py_ssize_t>window
    cdef Py_ssize_t least = 0
    cdef Py_ssize_t most = 0
    cdef Py_ssize_t block
    cdef int kind
    cdef int fault = 0
    cdef bint last = False
    with nogil:
        while not last:
            if size - position < 3:
                fault = 1
                break
            block = <Py_ssize_t>load_little(&data[position], 3)
            last = block & 1
            kind = (block >> 1) & 3
            block >>= 3
            position += 3
            if kind == 3:
                fault = 2
                break
            if kind < 2:
                least += block
                most += block
            else:
                most += block_limit
            position += 1 if kind == 1 else block
            if position > size:
                fault = 1
                break
    if fault == 0 and descriptor & 0x04:
        position += 4
        if position > size:
            fault = 1
    if fault == 1:
        raise FormatError(f"zstd frame is cut off at {size} bytes")
    if fault == 2:
        raise FormatError("zstd frame has a block of the reserved type")
    return position, least, most, (<Py_ssize_t>declared if declared_bytes else -1), window, dictionary
