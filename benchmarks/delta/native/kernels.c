/* Contenders and limits that need no library: page runs in the manner of QEMU's XBZRLE, reading, and
 * content-defined chunks. Compiled at run time for the machine it runs on. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

enum { PAGE = 4096, WORDS = PAGE / 64, RAW = 0xFFFF, BRIDGE = 3 };

/* One bit for each of 64 bytes: set where they differ. */
static inline uint64_t differing(const uint8_t *old, const uint8_t *new) {
#if defined(__AVX512BW__)
    return _mm512_cmpneq_epi8_mask(_mm512_loadu_si512(old), _mm512_loadu_si512(new));
#elif defined(__AVX2__)
    uint64_t bits = 0;
    for (int half = 0; half < 2; half++) {
        __m256i a = _mm256_loadu_si256((const __m256i *)(old + 32 * half));
        __m256i b = _mm256_loadu_si256((const __m256i *)(new + 32 * half));
        bits |= (uint64_t)(uint32_t)~_mm256_movemask_epi8(_mm256_cmpeq_epi8(a, b)) << (32 * half);
    }
    return bits;
#else
    uint64_t bits = 0;
    if (memcmp(old, new, 64) == 0) return 0;
    for (int i = 0; i < 64; i++) bits |= (uint64_t)(old[i] != new[i]) << i;
    return bits;
#endif
}

/* The first byte from `from` on that differs (or, with `flip` all ones, that does not). */
static inline unsigned next_byte(const uint64_t *bits, unsigned from, uint64_t flip) {
    while (from < PAGE) {
        uint64_t word = (bits[from >> 6] ^ flip) >> (from & 63);
        if (word) return from + (unsigned)__builtin_ctzll(word);
        from = (from | 63) + 1;
    }
    return PAGE;
}

static inline uint8_t *put_length(uint8_t *out, unsigned value) {
    while (value >= 128) {
        *out++ = (uint8_t)(value | 128);
        value >>= 7;
    }
    *out++ = (uint8_t)value;
    return out;
}

/* Bytes of both inputs must be a multiple of a page. `out` must hold n + 6 bytes a page.
 * A changed page: its number (u32), its length (u16, RAW for a whole page), then runs: the bytes that
 * stayed (LEB128), the bytes that changed (LEB128), and those. */
size_t xbzrle_encode(const uint8_t *old, const uint8_t *new, size_t n, uint8_t *out) {
    uint8_t *const start = out;
    for (size_t page = 0; page < n / PAGE; page++, old += PAGE, new += PAGE) {
        uint64_t bits[WORDS], any = 0;
        for (int i = 0; i < WORDS; i++) any |= bits[i] = differing(old + 64 * i, new + 64 * i);
        if (!any) continue;
        uint8_t *head = out;
        uint32_t number = (uint32_t)page;
        memcpy(head, &number, 4);
        out += 6;
        unsigned at = 0;
        for (;;) {
            unsigned from = next_byte(bits, at, 0);
            if (from == PAGE) break;
            unsigned to = next_byte(bits, from, ~0ull);
            for (unsigned next; to < PAGE && (next = next_byte(bits, to, 0)) < PAGE && next - to <= BRIDGE;)
                to = next_byte(bits, next, ~0ull);
            if ((size_t)(out - head) + (to - from) + 4 > PAGE) {
                out = NULL;
                break;
            }
            out = put_length(put_length(out, from - at), to - from);
            memcpy(out, new + from, to - from);
            out += to - from;
            at = to;
        }
        uint16_t length = out ? (uint16_t)(out - head - 6) : RAW;
        if (!out) {
            memcpy(head + 6, new, PAGE);
            out = head + 6 + PAGE;
        }
        memcpy(head + 4, &length, 2);
    }
    return (size_t)(out - start);
}

static inline const uint8_t *take_length(const uint8_t *in, unsigned *value) {
    unsigned shift = 0;
    *value = 0;
    do {
        *value |= (unsigned)(*in & 127) << shift;
        shift += 7;
    } while (*in++ & 128);
    return in;
}

/* Overwrite what changed in `out`, which holds the old version. */
void xbzrle_decode(const uint8_t *in, size_t length, uint8_t *out) {
    const uint8_t *const end = in + length;
    while (in < end) {
        uint32_t number;
        uint16_t told;
        memcpy(&number, in, 4);
        memcpy(&told, in + 4, 2);
        in += 6;
        uint8_t *page = out + (size_t)number * PAGE;
        if (told == RAW) {
            memcpy(page, in, PAGE);
            in += PAGE;
            continue;
        }
        for (const uint8_t *const stop = in + told; in < stop;) {
            unsigned same, changed;
            in = take_length(take_length(in, &same), &changed);
            memcpy(page += same, in, changed);
            page += changed;
            in += changed;
        }
    }
}

/* How fast memory can be read at all. */
uint64_t read_all(const uint64_t *data, size_t words) {
    uint64_t sums[32] = {0};
    for (size_t i = 0; i + 32 <= words; i += 32)
        for (int lane = 0; lane < 32; lane++) sums[lane] ^= data[i + lane];
    for (int lane = 1; lane < 32; lane++) sums[0] ^= sums[lane];
    return sums[0];
}

/* Ends of content-defined chunks by a gear hash, 16 KiB on average; gives their number. */
size_t chunk_ends(const uint8_t *data, size_t n, const uint64_t gear[256], uint64_t *ends) {
    const uint64_t mask = 0x3FFFull << 50;
    const size_t least = 4096, most = 65536;
    size_t count = 0, at = 0;
    while (at < n) {
        size_t stop = n - at < most ? n : at + most, i = n - at < least ? n : at + least;
        uint64_t hash = 0;
        while (i < stop) {
            hash = (hash << 1) + gear[data[i++]];
            if (!(hash & mask)) break;
        }
        ends[count++] = at = i;
    }
    return count;
}
