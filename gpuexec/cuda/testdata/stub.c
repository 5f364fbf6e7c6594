// A libcuda for tests: the functions that package cuda and the Python client use,
// on memory of the host, which other processes with this library can import. It
// checks its arguments as the driver does (the context of the thread above all),
// runs the kernels by the C of elements.h, counts what is not given back, and
// fails where it is told to.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../../kernels/src/elements.h"

typedef int CUresult;
typedef uint64_t CUdeviceptr;
enum { OK = 0, INVALID = 1, OOM = 2, NOT_INIT = 3, NO_DEVICE = 100, BAD_DEVICE = 101, NO_CONTEXT = 201, BAD_PTX = 218, BAD_HANDLE = 400, NOT_FOUND = 500, MISALIGNED = 716 };

// ---- What a test sets, and looks at. ----

static struct { char name[64]; int after; CUresult code; } fault;
static int version = 12040, devices = 2, exports = 1, major = 9;
static int64_t limit = 1ll << 40, used; // bytes
static int live;                        // objects that were made and not given back
static CUresult sticky;                 // what the context answers from now on
static int calls;                       // kernels launched
static int streams, pushed;             // the last one's was not the default one; contexts pushed and not popped

void stub_reset(void) {
  memset(&fault, 0, sizeof fault);
  version = 12040, devices = 2, exports = 1, major = 9, limit = 1ll << 40, sticky = 0, calls = 0;
}
// Makes the call of that function after so many others fail.
void stub_fail(const char *name, int after, CUresult code) {
  strncpy(fault.name, name, sizeof fault.name - 1);
  fault.after = after, fault.code = code;
}
void stub_set(const char *what, int64_t v) {
  if (!strcmp(what, "version")) version = v;
  if (!strcmp(what, "devices")) devices = v;
  if (!strcmp(what, "exports")) exports = v;
  if (!strcmp(what, "major")) major = v;
  if (!strcmp(what, "limit")) limit = used + v;
  if (!strcmp(what, "live")) live = v;
  if (!strcmp(what, "pushed")) pushed = v;
}
int64_t stub_get(const char *what) {
  return !strcmp(what, "live") ? live : !strcmp(what, "used") ? used : !strcmp(what, "launches") ? calls : !strcmp(what, "stream") ? streams : !strcmp(what, "pushed") ? pushed : -1;
}
// Another process is told by its environment: STUB_SET="exports=0 limit=1000".
__attribute__((constructor)) static void told_by_environment(void) {
  const char *s = getenv("STUB_SET");
  char what[64];
  long long v;
  for (int n = 0; s && sscanf(s, " %63[a-z]=%lld%n", what, &v, &n) == 2; s += n) stub_set(what, v);
}

static CUresult told(const char *name) {
  if (fault.code && !strcmp(fault.name, name) && fault.after-- == 0) {
    CUresult r = fault.code;
    fault.code = 0;
    if (r >= 700) sticky = r;
    return r;
  }
  return 0;
}
static __thread void *current, *below[8]; // the thread's context, and those that were pushed aside
static __thread int depth;
static int inited;
static char primary[2];

#define FAULTS do { CUresult r_ = told(__func__); if (r_) return r_; } while (0)
#define CONTEXT do { FAULTS; if (!current) return NO_CONTEXT; if (sticky) return sticky; } while (0)

// ---- Driver, devices, context. ----

CUresult cuInit(unsigned flags) { FAULTS; if (flags) return INVALID; if (!devices) return NO_DEVICE; inited = 1; return OK; }
CUresult cuDriverGetVersion(int *v) { FAULTS; *v = version; return OK; }
CUresult cuGetErrorName(CUresult r, const char **s) { *s = r == OOM ? "CUDA_ERROR_OUT_OF_MEMORY" : r == 719 ? "CUDA_ERROR_LAUNCH_FAILED" : "CUDA_ERROR_STUB"; return OK; }
CUresult cuGetErrorString(CUresult r, const char **s) { *s = r == OOM ? "out of memory" : "as the test wanted"; return OK; }
CUresult cuDeviceGetCount(int *n) { FAULTS; if (!inited) return NOT_INIT; *n = devices; return OK; }
CUresult cuDeviceGet(int *d, int i) { FAULTS; if (i < 0 || i >= devices) return BAD_DEVICE; *d = i; return OK; }
CUresult cuDeviceGetName(char *s, int n, int d) { FAULTS; if (d >= devices || n < 16) return INVALID; strcpy(s, "Stub GPU"); return OK; }
CUresult cuDeviceGetUuid(char *u, int d) { FAULTS; for (int i = 0; i < 16; i++) u[i] = i * 3 + d; return OK; }
CUresult cuDeviceGetAttribute(int *v, int a, int d) {
  FAULTS;
  if (d >= devices) return BAD_DEVICE;
  switch (a) {
  case 16: *v = 3; return OK;
  case 75: *v = major; return OK;
  case 76: *v = 0; return OK;
  case 102: case 103: *v = exports; return OK;
  }
  return INVALID;
}
CUresult cuDevicePrimaryCtxRetain(void **c, int d) { FAULTS; *c = &primary[d]; live++; return OK; }
CUresult cuDevicePrimaryCtxRelease_v2(int d) { FAULTS; (void)d; live--; return OK; }
CUresult cuCtxSetCurrent(void *c) { FAULTS; current = c; return OK; }
CUresult cuCtxPushCurrent_v2(void *c) { FAULTS; if (!c || depth == 8) return INVALID; below[depth++] = current, current = c, pushed++; return OK; }
CUresult cuCtxPopCurrent_v2(void **c) { FAULTS; if (!depth) return NO_CONTEXT; *c = current, current = below[--depth], pushed--; return OK; }
CUresult cuCtxSynchronize(void) { CONTEXT; return OK; }

// ---- Streams. Everything is done at once; only the arguments are checked. ----

static char stream;
CUresult cuStreamCreate(void **s, unsigned flags) { CONTEXT; if (flags != 1) return INVALID; *s = &stream; live++; return OK; }
CUresult cuStreamDestroy_v2(void *s) { CONTEXT; if (s != &stream) return BAD_HANDLE; live--; return OK; }
CUresult cuStreamSynchronize(void *s) { CONTEXT; return s == &stream ? OK : BAD_HANDLE; }

// ---- Memory. ----

// What is where: reserved addresses, and what is mapped into them or allocated.
enum { NOTHING, RESERVED, MAPPED, ALLOCATED, OPENED };
static struct place { int kind; CUdeviceptr p; size_t n; int fd; } places[4096];

static struct place *place(int kind, CUdeviceptr p) {
  for (int i = 0; i < 4096; i++)
    if (places[i].kind == kind && (kind == NOTHING || places[i].p == p)) return &places[i];
  return 0;
}
static int enter(int kind, void *p, size_t n, int fd) {
  struct place *x = place(NOTHING, 0);
  if (!x) return 0;
  *x = (struct place){kind, (CUdeviceptr)p, n, fd}, live++;
  return 1;
}
static void leave(struct place *x) { x->kind = NOTHING, live--; }
// Counts those of a kind that have a byte of the range.
static int within(int kind, CUdeviceptr p, size_t n) {
  int count = 0;
  for (int i = 0; i < 4096; i++) count += places[i].kind == kind && places[i].p < p + n && p < places[i].p + places[i].n;
  return count;
}

static int file(size_t n) { // of memory; as it comes, it is not zero
  int fd = memfd_create("stub", MFD_CLOEXEC);
  if (fd < 0) return -1;
  char *q = ftruncate(fd, n) ? MAP_FAILED : mmap(0, n, PROT_WRITE, MAP_SHARED, fd, 0);
  if (q == MAP_FAILED) return close(fd), -1;
  memset(q, 0xa5, n);
  munmap(q, n);
  return fd;
}
static CUresult map_file(int kind, CUdeviceptr *p, size_t n, int fd) {
  void *q = fd < 0 ? MAP_FAILED : mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (q == MAP_FAILED || !enter(kind, q, n, fd)) return OOM;
  *p = (CUdeviceptr)q;
  return OK;
}
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) {
  CONTEXT;
  if (!n) return INVALID;
  if (used + (int64_t)n > limit) return OOM;
  used += n;
  return map_file(ALLOCATED, p, n, file(n));
}
CUresult cuMemFree_v2(CUdeviceptr p) {
  CONTEXT;
  struct place *x = place(ALLOCATED, p);
  if (!x) return INVALID;
  used -= x->n;
  munmap((void *)p, x->n), close(x->fd), leave(x);
  return OK;
}

// A handle names the process and its file, as the driver's knows its exporter.
struct ipc { int magic, pid, fd, reserved; size_t n; char rest[40]; };
CUresult cuIpcGetMemHandle(struct ipc *h, CUdeviceptr p) {
  CONTEXT;
  struct place *x = place(ALLOCATED, p);
  if (!x) return INVALID;
  *h = (struct ipc){0x1c0de, getpid(), x->fd, 0, x->n, {0}};
  memset(h->rest, 0x5a, sizeof h->rest);
  return OK;
}
CUresult cuIpcOpenMemHandle_v2(CUdeviceptr *p, struct ipc h, unsigned flags) {
  CONTEXT;
  if (h.magic != 0x1c0de || h.rest[39] != 0x5a || flags != 1) return INVALID;
  if (h.pid == getpid()) return NO_CONTEXT;
  char name[64];
  snprintf(name, sizeof name, "/proc/%d/fd/%d", h.pid, h.fd);
  return map_file(OPENED, p, h.n, open(name, O_RDWR | O_CLOEXEC));
}
CUresult cuIpcCloseMemHandle(CUdeviceptr p) {
  CONTEXT;
  struct place *x = place(OPENED, p);
  if (!x) return INVALID;
  munmap((void *)p, x->n), close(x->fd), leave(x);
  return OK;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *s, size_t n, void *st) { CONTEXT; if (st != &stream) return BAD_HANDLE; memcpy((void *)d, s, n); return OK; }
CUresult cuMemcpyDtoHAsync_v2(void *d, CUdeviceptr s, size_t n, void *st) { CONTEXT; if (st != &stream) return BAD_HANDLE; memcpy(d, (void *)s, n); return OK; }
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr s, size_t n, void *st) { CONTEXT; if (st != &stream) return BAD_HANDLE; memmove((void *)d, (void *)s, n); return OK; }
#define MEMSET(NAME, T)                                                        \
  CUresult NAME(CUdeviceptr d, T v, size_t n, void *st) {                      \
    CONTEXT;                                                                   \
    if (st != &stream || d % sizeof(T)) return INVALID;                        \
    for (size_t i = 0; i < n; i++) ((T *)d)[i] = v;                            \
    return OK;                                                                 \
  }
MEMSET(cuMemsetD8Async, uint8_t)
MEMSET(cuMemsetD16Async, uint16_t)
MEMSET(cuMemsetD32Async, uint32_t)

#ifndef STUB_OLD
struct prop { int kind, handles, location, id; void *win32; char flags[8]; };
struct desc { int location, id, flags; };
#define GRAIN (2ul << 20)
static int good(const struct prop *p) { return p->kind == 1 && p->handles == 1 && p->location == 1 && p->id >= 0 && p->id < devices && !p->win32; }

CUresult cuMemGetAllocationGranularity(size_t *n, const struct prop *p, int option) { FAULTS; if (!good(p) || option) return INVALID; *n = GRAIN; return OK; }
CUresult cuMemAddressReserve(CUdeviceptr *p, size_t n, size_t align, CUdeviceptr hint, uint64_t flags) {
  CONTEXT;
  if (!n || n % GRAIN || align % GRAIN || hint || flags) return INVALID;
  char *q = n > 1ull << 50 ? MAP_FAILED : mmap(0, n + GRAIN, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (q == MAP_FAILED) return OOM;
  char *aligned = (char *)(((uintptr_t)q + GRAIN - 1) & ~(GRAIN - 1));
  if (aligned > q) munmap(q, aligned - q);
  munmap(aligned + n, q + GRAIN - aligned);
  if (!enter(RESERVED, aligned, n, -1)) return OOM;
  *p = (CUdeviceptr)aligned;
  return OK;
}
CUresult cuMemAddressFree(CUdeviceptr p, size_t n) {
  CONTEXT;
  struct place *x = place(RESERVED, p);
  if (!x || x->n != n || within(MAPPED, p, n)) return INVALID;
  leave(x);
  return munmap((void *)p, n) ? INVALID : OK;
}

struct handle { int fd; size_t size, counted; };
CUresult cuMemCreate(uint64_t *h, size_t n, const struct prop *p, uint64_t flags) {
  CONTEXT;
  if (!good(p) || flags || !n || n % GRAIN) return INVALID;
  if (used + (int64_t)n > limit) return OOM;
  int fd = file(n);
  if (fd < 0) return OOM;
  struct handle *x = malloc(sizeof *x);
  *x = (struct handle){fd, n, n};
  used += n, live++, *h = (uint64_t)x;
  return OK;
}
CUresult cuMemRelease(uint64_t h) { CONTEXT; struct handle *x = (void *)h; used -= x->counted, live--; close(x->fd); free(x); return OK; }
CUresult cuMemMap(CUdeviceptr p, size_t n, size_t offset, uint64_t h, uint64_t flags) {
  CONTEXT;
  struct handle *x = (void *)h;
  if (p % GRAIN || n != x->size || offset || flags) return INVALID;
  if (within(RESERVED, p, n) != 1 || within(MAPPED, p, n)) return INVALID;
  if (mmap((void *)p, n, PROT_NONE, MAP_SHARED | MAP_FIXED, x->fd, 0) == MAP_FAILED) return INVALID;
  return enter(MAPPED, (void *)p, n, -1) ? OK : OOM;
}
CUresult cuMemUnmap(CUdeviceptr p, size_t n) {
  CONTEXT;
  struct place *x = place(MAPPED, p);
  if (!x || x->n != n) return INVALID;
  leave(x);
  return mmap((void *)p, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED ? INVALID : OK;
}
CUresult cuMemSetAccess(CUdeviceptr p, size_t n, const struct desc *d, size_t count) {
  CONTEXT;
  struct place *x = place(MAPPED, p);
  if (!x || x->n != n) return INVALID;
  if (count != 1 || d->location != 1 || d->id < 0 || d->id >= devices || d->flags != 3) return INVALID;
  return mprotect((void *)p, n, PROT_READ | PROT_WRITE) ? INVALID : OK;
}
CUresult cuMemExportToShareableHandle(void *out, uint64_t h, int kind, uint64_t flags) {
  CONTEXT;
  if (kind != 1 || flags) return INVALID;
  *(int *)out = dup(((struct handle *)h)->fd);
  return OK;
}
CUresult cuMemImportFromShareableHandle(uint64_t *h, void *fd, int kind) {
  CONTEXT;
  struct stat st;
  if (kind != 1 || fstat((int)(intptr_t)fd, &st) || st.st_size % GRAIN) return INVALID;
  struct handle *x = malloc(sizeof *x);
  *x = (struct handle){dup((int)(intptr_t)fd), st.st_size, 0};
  live++, *h = (uint64_t)x;
  return OK;
}
#endif

// ---- Kernels: the element functions, one block after the other. ----

static const char *names[] = {"esperd_uniform_f32", "esperd_uniform_f16", "esperd_uniform_bf16", "esperd_fingerprint", "esperd_table"};
CUresult cuModuleLoadDataEx(void **m, const char *ptx, unsigned n, const int *opts, void **vals) {
  CONTEXT;
  if (n != 2 || opts[0] != 5 || opts[1] != 6) return INVALID;
  size_t length = strlen(ptx); // ends, or else is found by the sanitizer
  int bad = length < 1000 || !strstr(ptx, ".version 7.0") || !strstr(ptx, ".target sm_70");
  CUresult r = told("jit");
  if (bad || r) {
    strncpy(vals[0], "ptxas fatal: as the test wanted", (size_t)vals[1] - 1);
    return BAD_PTX;
  }
  *m = (void *)names, live++;
  return OK;
}
CUresult cuModuleUnload(void *m) { CONTEXT; live--; return m == (void *)names ? OK : BAD_HANDLE; }
CUresult cuModuleGetFunction(void **f, void *m, const char *name) {
  CONTEXT;
  for (unsigned i = 0; m == (void *)names && i < sizeof names / sizeof *names; i++)
    if (!strcmp(names[i], name)) { *f = &names[i]; return OK; }
  return NOT_FOUND;
}

static void uniform_kernel(int kind, char *dst, u64 n, u64 key, u64 stream_, float scale) {
  for (u64 i = 0; i < n; i++) {
    float f = uniform(random_block(i / 4, stream_, key).w[i % 4], scale);
    if (kind == 0) ((u32 *)dst)[i] = bits_f32(f);
    if (kind == 1) ((u16 *)dst)[i] = bits_f16(f);
    if (kind == 2) ((u16 *)dst)[i] = bits_bf16(f);
  }
}
static CUresult fingerprint_kernel(const u8 *base, const struct segment *segments, u32 count, struct sum *sums) {
  for (u32 s = 0; s < count; s++) {
    struct sum a = {0, 0};
    if (((u64)base + segments[s].offset) % 16) return sticky = MISALIGNED;
    for (u64 at = 0; at < segments[s].bytes; at += 16) {
      u64 w[2] = {0, 0}, rest = segments[s].bytes - at;
      memcpy(w, base + segments[s].offset + at, rest < 16 ? rest : 16);
      a = sum_add(a, sum_block(w[0], w[1], segments[s].block + at / 16));
    }
    sums[s] = a;
  }
  return OK;
}
static void table_kernel(struct header *h, struct entry *table, u32 slots, const struct updates *all) {
  for (u32 i = 0; i < all->count; i++) {
    const struct update *u = &all->u[i];
    if (u->slot >= slots) continue;
    struct entry e = {u->offset, u->elements, u->alpha, u->flags, all->generation};
    table[u->slot] = e;
  }
  h->generation = all->generation;
}

CUresult cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared, void *st, void **p, void **extra) {
  CONTEXT;
  if (!gx || gy != 1 || gz != 1 || bx % 32 || bx > 1024 || by != 1 || bz != 1 || shared || (st && st != &stream) || extra) return INVALID;
  calls++, streams = st == &stream;
#define ARG(T, I) (*(T *)p[I])
  switch ((const char **)f - names) {
  case 0: case 1: case 2:
    uniform_kernel((const char **)f - names, ARG(char *, 0), ARG(u64, 1), ARG(u64, 2), ARG(u64, 3), ARG(float, 4));
    return OK;
  case 3:
    if ((u64)gx > ARG(u32, 2) + 1ull) return INVALID;
    return fingerprint_kernel(ARG(u8 *, 0), ARG(struct segment *, 1), ARG(u32, 2), ARG(struct sum *, 3));
  case 4:
    if (gx != 1) return INVALID;
    table_kernel(ARG(struct header *, 0), ARG(struct entry *, 1), ARG(u32, 2), &ARG(struct updates, 3));
    return OK;
  }
  return BAD_HANDLE;
}
