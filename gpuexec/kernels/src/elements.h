// The element functions: what one thread does to one block of 16 bytes, or to
// one entry of the table. They are plain C and the only definition of the bits
// besides package element; kernels.c compiles them for the GPU, the tests' stub
// of the driver for the CPU.
//
// Whoever changes one changes package element too, and runs "make kernels".
#ifndef ESPERD_ELEMENTS_H
#define ESPERD_ELEMENTS_H

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;

#define FN static inline __attribute__((always_inline))

// ---- Random numbers: Philox4x32-10 (Salmon, Moraes, Dror, Shaw 2011). ----

struct words { u32 w[4]; };

FN struct words philox(struct words c, u32 k0, u32 k1) {
#pragma unroll
  for (int round = 0; round < 10; round++) {
    u64 a = (u64)0xD2511F53u * c.w[0], b = (u64)0xCD9E8D57u * c.w[2];
    struct words n = {{(u32)(b >> 32) ^ c.w[1] ^ k0, (u32)b, (u32)(a >> 32) ^ c.w[3] ^ k1, (u32)a}};
    c = n;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return c;
}

// Element i of a tensor comes from word i % 4 of block i / 4.
FN struct words random_block(u64 block, u64 stream, u64 key) {
  struct words c = {{(u32)block, (u32)(block >> 32), (u32)stream, (u32)(stream >> 32)}};
  return philox(c, (u32)key, (u32)(key >> 32));
}

// An odd number of 25 bits, so symmetric and never 0, times bound * 2^-24: one
// exact conversion and one rounding, nothing that a compiler could fuse.
FN float uniform(u32 x, float scale) {
  int odd = (int)((x >> 8) * 2u + 1u) - (1 << 24);
  return (float)odd * scale;
}

FN u32 bits_f32(float f) {
  union { float f; u32 u; } v = {f};
  return v.u;
}

// To nearest, ties to even. The value is finite.
FN u16 bits_bf16(float f) {
  u32 u = bits_f32(f);
  return (u16)((u + 0x7fffu + (u >> 16 & 1u)) >> 16);
}

FN u16 bits_f16(float f) {
  union { _Float16 h; u16 u; } v = {(_Float16)f};
  return v.u;
}

// ---- Fingerprints: NH over 64-bit words, summed modulo 2^128. ----

struct sum { u64 lo, hi; };

FN struct sum sum_add(struct sum a, struct sum b) {
  struct sum r;
  r.lo = a.lo + b.lo;
  r.hi = a.hi + b.hi + (r.lo < a.lo);
  return r;
}

// The keys of a block are mixed from its index inside its tensor, so the sum
// tells positions apart and may be taken in any order.
FN struct sum sum_block(u64 w0, u64 w1, u64 index) {
  u64 x = (index + 1) * 0x9E3779B97F4A7C15ull;
  x = (x ^ x >> 32) * 0xFF51AFD7ED558CCDull;
  u64 k0 = x ^ x >> 32, k1 = (x >> 32 | x << 32) * 0x9FB21C651E98DF25ull;
  unsigned __int128 p = (unsigned __int128)(w0 + k0) * (w1 + k1);
  struct sum r = {(u64)p, (u64)(p >> 64)};
  return r;
}

// A run of bytes inside one tensor.
struct segment {
  u64 offset; // from the base, in bytes; base + offset is a multiple of 16
  u64 bytes;  // less than 2^36
  u64 block;  // index of the first 16-byte block inside its tensor
};

// ---- The table: one entry per slot, for kernels and CUDA graphs to read. ----

struct entry {
  u64 offset;   // of the seed's first parameter in the arena, in bytes
  u64 elements; // of all its parameters
  float alpha;
  u32 flags;
  u64 generation; // written last
};

struct header {
  u64 magic;
  u32 version, slots;
  u64 generation; // of the newest update, written after all its entries
  u64 reserved[5];
};

struct update {
  u32 slot, reserved;
  u64 offset, elements;
  float alpha;
  u32 flags;
};

#define UPDATES 64

struct updates {
  u32 count, reserved;
  u64 generation;
  struct update u[UPDATES];
};

#endif
