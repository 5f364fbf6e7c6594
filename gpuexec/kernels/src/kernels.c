// The kernels. "make kernels" compiles them to esperd.ptx with the clang that it
// pins; the PTX is committed and embedded, and CI compares.
//
// All bounds come from the arguments: a launch reads and writes nothing outside
// of what they name, whatever the grid. Blocks are multiples of 32 threads, at
// most 1024; grids have one dimension.
#include "elements.h"

#define KERNEL __attribute__((nvptx_kernel)) void
#define SHARED __attribute__((address_space(3)))

FN u32 thread_id(void) { return (u32)__nvvm_read_ptx_sreg_tid_x(); }
FN u32 threads(void) { return (u32)__nvvm_read_ptx_sreg_ntid_x(); }
FN u32 group_id(void) { return (u32)__nvvm_read_ptx_sreg_ctaid_x(); }
FN u32 groups(void) { return (u32)__nvvm_read_ptx_sreg_nctaid_x(); }

typedef u32 quad __attribute__((ext_vector_type(4)));
typedef u64 pair __attribute__((ext_vector_type(2)));

// Fills n elements at dst, a multiple of 16, with a uniform distribution.
KERNEL esperd_uniform_f32(u32 *__restrict dst, u64 n, u64 key, u64 stream, float scale) {
  u64 i = (u64)group_id() * threads() + thread_id(), step = (u64)groups() * threads(), whole = n / 4;
#pragma nounroll
  for (; i < whole; i += step) {
    struct words r = random_block(i, stream, key);
    quad v = {bits_f32(uniform(r.w[0], scale)), bits_f32(uniform(r.w[1], scale)),
              bits_f32(uniform(r.w[2], scale)), bits_f32(uniform(r.w[3], scale))};
    *(quad *)(dst + i * 4) = v;
  }
  u32 rest = (u32)n & 3;
  if (i == whole && rest) {
    struct words r = random_block(whole, stream, key);
    dst[whole * 4] = bits_f32(uniform(r.w[0], scale));
    if (rest > 1) dst[whole * 4 + 1] = bits_f32(uniform(r.w[1], scale));
    if (rest > 2) dst[whole * 4 + 2] = bits_f32(uniform(r.w[2], scale));
  }
}

// The same in 16 bits: 8 elements to a store. ROUND rounds one value.
#define UNIFORM16(NAME, ROUND)                                                                      \
  KERNEL NAME(u16 *__restrict dst, u64 n, u64 key, u64 stream, float scale) {                       \
    u64 i = (u64)group_id() * threads() + thread_id(), step = (u64)groups() * threads();            \
    u64 whole = n / 8;                                                                              \
    _Pragma("nounroll") for (; i < whole; i += step) {                                              \
      struct words a = random_block(2 * i, stream, key), b = random_block(2 * i + 1, stream, key);  \
      quad v;                                                                                       \
      v.x = ROUND(uniform(a.w[0], scale)) | (u32)ROUND(uniform(a.w[1], scale)) << 16;               \
      v.y = ROUND(uniform(a.w[2], scale)) | (u32)ROUND(uniform(a.w[3], scale)) << 16;               \
      v.z = ROUND(uniform(b.w[0], scale)) | (u32)ROUND(uniform(b.w[1], scale)) << 16;               \
      v.w = ROUND(uniform(b.w[2], scale)) | (u32)ROUND(uniform(b.w[3], scale)) << 16;               \
      *(quad *)(dst + i * 8) = v;                                                                   \
    }                                                                                               \
    if (i == whole) {                                                                               \
      u64 at = whole * 8;                                                                           \
      _Pragma("nounroll") for (; at < n; at += 4) {                                                 \
        struct words r = random_block(at / 4, stream, key);                                         \
        dst[at] = ROUND(uniform(r.w[0], scale));                                                    \
        if (at + 1 < n) dst[at + 1] = ROUND(uniform(r.w[1], scale));                                \
        if (at + 2 < n) dst[at + 2] = ROUND(uniform(r.w[2], scale));                                \
        if (at + 3 < n) dst[at + 3] = ROUND(uniform(r.w[3], scale));                                \
      }                                                                                             \
    }                                                                                               \
  }

UNIFORM16(esperd_uniform_f16, bits_f16)
UNIFORM16(esperd_uniform_bf16, bits_bf16)

FN u64 shuffle_down(u64 x, int lanes) {
  u32 lo = (u32)__nvvm_shfl_sync_down_i32(-1, (int)(u32)x, lanes, 31);
  u32 hi = (u32)__nvvm_shfl_sync_down_i32(-1, (int)(u32)(x >> 32), lanes, 31);
  return (u64)lo | (u64)hi << 32;
}

FN struct sum sum_warp(struct sum a) {
#pragma unroll
  for (int lanes = 16; lanes; lanes >>= 1) {
    struct sum b = {shuffle_down(a.lo, lanes), shuffle_down(a.hi, lanes)};
    a = sum_add(a, b);
  }
  return a;
}

FN struct sum sum_pair(struct sum a, pair v, u64 index) { return sum_add(a, sum_block(v.x, v.y, index)); }

static SHARED u64 warp_sums[64];

// Writes one sum per segment. Segments are up to 256 KiB, one group each.
KERNEL esperd_fingerprint(const u8 *__restrict base, const struct segment *__restrict segments, u32 count,
                          struct sum *__restrict sums) {
  u32 t = thread_id(), step = threads(), warp = t >> 5, lane = t & 31, warps = step >> 5;
#pragma nounroll
  for (u32 s = group_id(); s < count; s += groups()) {
    const u8 *at = base + segments[s].offset;
    const pair *src = (const pair *)at;
    u64 block = segments[s].block;
    u32 whole = (u32)(segments[s].bytes >> 4), rest = (u32)segments[s].bytes & 15, i = t;
    struct sum a = {0, 0};
#pragma nounroll
    for (; (u64)i + 3ull * step < whole; i += 4 * step) {
      pair v0 = src[i], v1 = src[i + step], v2 = src[i + 2 * step], v3 = src[i + 3 * step];
      a = sum_pair(sum_pair(a, v0, block + i), v1, block + i + step);
      a = sum_pair(sum_pair(a, v2, block + i + 2 * step), v3, block + i + 3 * step);
    }
#pragma nounroll
    for (; i < whole; i += step) a = sum_pair(a, src[i], block + i);
    if (i == whole && rest) { // the one thread whose turn it would be
      u64 w[2] = {0, 0};
#pragma nounroll
      for (u32 j = 0; j < rest; j++) {
        u64 b = (u64)at[(u64)whole * 16 + j] << (j % 8 * 8);
        if (j < 8) w[0] |= b; else w[1] |= b;
      }
      a = sum_add(a, sum_block(w[0], w[1], block + whole));
    }
    a = sum_warp(a);
    if (lane == 0) {
      warp_sums[2 * warp] = a.lo;
      warp_sums[2 * warp + 1] = a.hi;
    }
    __nvvm_bar_sync(0);
    if (warp == 0) {
      struct sum z = {0, 0};
      if (lane < warps) {
        z.lo = warp_sums[2 * lane];
        z.hi = warp_sums[2 * lane + 1];
      }
      z = sum_warp(z);
      if (lane == 0) sums[s] = z;
    }
    __nvvm_bar_sync(0);
  }
}

// Changes up to UPDATES entries: what they say, then their generations, then the
// header's. Launched as one group; it changes no entry beyond the table's slots.
KERNEL esperd_table(struct header *__restrict header, struct entry *__restrict table, u32 slots, struct updates all) {
#pragma nounroll
  for (u32 i = thread_id(); i < all.count; i += threads()) {
    const struct update *u = &all.u[i];
    if (u->slot >= slots) continue;
    struct entry *e = table + u->slot;
    e->offset = u->offset;
    e->elements = u->elements;
    e->alpha = u->alpha;
    e->flags = u->flags;
  }
  __nvvm_membar_sys();
  __nvvm_bar_sync(0);
#pragma nounroll
  for (u32 i = thread_id(); i < all.count; i += threads())
    if (all.u[i].slot < slots) *(volatile u64 *)&table[all.u[i].slot].generation = all.generation;
  __nvvm_membar_sys();
  __nvvm_bar_sync(0);
  if (thread_id() == 0) *(volatile u64 *)&header->generation = all.generation;
}
