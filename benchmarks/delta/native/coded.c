/* XOR with the old version, zstd and XXH3 in one pass over blocks that stay in the cache: what today's
 * pipeline would be without Python. XXH3 is compiled in, for this machine: distributions build its library
 * for the oldest processors. zstd chooses at run time, and its stable functions are declared here. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

typedef XXH128_hash_t Digest;
typedef struct ZSTD_CCtx_s ZSTD_CCtx;
typedef struct ZSTD_DCtx_s ZSTD_DCtx;
ZSTD_CCtx *ZSTD_createCCtx(void);
size_t ZSTD_freeCCtx(ZSTD_CCtx *);
size_t ZSTD_compressCCtx(ZSTD_CCtx *, void *, size_t, const void *, size_t, int);
ZSTD_DCtx *ZSTD_createDCtx(void);
size_t ZSTD_freeDCtx(ZSTD_DCtx *);
size_t ZSTD_decompressDCtx(ZSTD_DCtx *, void *, size_t, const void *, size_t);
unsigned ZSTD_isError(size_t);
enum { BLOCK = 1 << 20 };

static void xor_block(uint8_t *restrict out, const uint8_t *restrict a, const uint8_t *restrict b, size_t n) {
    for (size_t i = 0; i < n; i++) out[i] = a[i] ^ b[i];
}

/* The digest of `new`, then each block's length (u32) and frame. Gives the length, 0 if it failed. */
size_t xor_zstd_encode(const uint8_t *old, const uint8_t *new, size_t n, int level, uint8_t *out, size_t room) {
    ZSTD_CCtx *context = ZSTD_createCCtx();
    XXH3_state_t *state = XXH3_createState();
    uint8_t *scratch = malloc(BLOCK);
    size_t at = sizeof(Digest);
    XXH3_128bits_reset(state);
    for (size_t from = 0; from < n && at; from += BLOCK) {
        size_t length = n - from < BLOCK ? n - from : BLOCK;
        xor_block(scratch, old + from, new + from, length);
        XXH3_128bits_update(state, new + from, length);
        size_t made = ZSTD_compressCCtx(context, out + at + 4, room - at - 4, scratch, length, level);
        uint32_t told = (uint32_t)made;
        memcpy(out + at, &told, 4);
        at = ZSTD_isError(made) ? 0 : at + 4 + made;
    }
    Digest digest = XXH3_128bits_digest(state);
    memcpy(out, &digest, sizeof digest);
    free(scratch);
    XXH3_freeState(state);
    ZSTD_freeCCtx(context);
    return at;
}

/* Turn `held` from the old version into the new one; 0 if the digest agrees. */
int xor_zstd_decode(const uint8_t *in, uint8_t *held, size_t n) {
    ZSTD_DCtx *context = ZSTD_createDCtx();
    XXH3_state_t *state = XXH3_createState();
    uint8_t *scratch = malloc(BLOCK);
    Digest told, digest;
    int failed = 0;
    memcpy(&told, in, sizeof told);
    in += sizeof told;
    XXH3_128bits_reset(state);
    for (size_t from = 0; from < n && !failed; from += BLOCK) {
        size_t length = n - from < BLOCK ? n - from : BLOCK;
        uint32_t coded;
        memcpy(&coded, in, 4);
        failed = ZSTD_decompressDCtx(context, scratch, BLOCK, in + 4, coded) != length;
        in += 4 + coded;
        for (size_t i = 0; i < length; i++) held[from + i] ^= scratch[i];
        XXH3_128bits_update(state, held + from, length);
    }
    digest = XXH3_128bits_digest(state);
    free(scratch);
    XXH3_freeState(state);
    ZSTD_freeDCtx(context);
    return failed || memcmp(&told, &digest, sizeof told) != 0;
}

/* How fast memory can be hashed. */
uint64_t hash_all(const uint8_t *in, size_t n) { return XXH3_128bits(in, n).low64; }

/* The limit of incompressible input: block by block, hash what is copied. */
uint64_t hash_and_copy(const uint8_t *in, uint8_t *out, size_t n) {
    uint64_t mixed = 0;
    for (size_t from = 0; from < n; from += BLOCK) {
        size_t length = n - from < BLOCK ? n - from : BLOCK;
        mixed ^= XXH3_128bits(in + from, length).low64;
        memcpy(out + from, in + from, length);
    }
    return mixed;
}

/* The limit of an identical pair that must be proven: block by block, compare and hash. */
uint64_t compare_and_hash(const uint8_t *old, const uint8_t *new, size_t n) {
    uint64_t mixed = 0;
    for (size_t from = 0; from < n; from += BLOCK) {
        size_t length = n - from < BLOCK ? n - from : BLOCK;
        if (memcmp(old + from, new + from, length) != 0) return 0;
        mixed ^= XXH3_128bits(new + from, length).low64 | 1;
    }
    return mixed;
}
