"""The trainer's side of the checks: torch on an arena that another process made.

    trainer.py SOCKET PID

It talks to serve_test.go: a command per line, a line of JSON back; "attach" is
answered with an offer (gpuexec/device/send_linux.go). PID is killed in the end.
"""
import array
import ctypes
import json
import mmap
import os
import signal
import socket
import struct
import sys
import time

import torch


def main(path, pid):
    s = socket.socket(socket.AF_UNIX)
    s.connect(path)
    lines = s.makefile("r")

    def ask(what):
        s.sendall(what.encode() + b"\n")
        answer = json.loads(lines.readline())
        if isinstance(answer, dict) and "error" in answer:
            raise SystemExit("%s: %s" % (what, answer["error"]))
        return answer

    vote = ask("germinate")["votes"]
    assert vote == [{"slot": "a", "seed": 1, "ready": True}], vote
    # The offer follows the command on the raw socket: no line was read ahead.
    s.sendall(b"attach\n")
    arena, cuda = attach(s)
    view = ask("view")
    tensors = {t["name"]: t for t in view["tensors"]}

    def at(offset, elements, dtype):
        size = torch.empty(0, dtype=dtype).element_size()
        return arena[offset:offset + elements * size].view(dtype)

    w = tensors["weight"]
    weight = torch.nn.Parameter(at(w["parameter"], w["elements"], torch.float32).view(w["shape"]))
    first = bytes(weight.detach().flatten()[:16].cpu().numpy().tobytes()).hex()
    assert first == ask("first")["bytes"], "the log's initial bits"
    brain = tensors["brain"]
    rounded = at(brain["parameter"], brain["elements"], torch.bfloat16)
    master = at(brain["master"], brain["elements"], torch.float32)
    assert torch.equal(master.to(torch.bfloat16), rounded), "a master copy rounds to its parameter"

    # Gradients in the arena, optimizer steps in place.
    before = ask("attest")
    report = ask("train")
    span = [x for x in report["spans"] if x["dtype"] == "float32"][0]
    weight.grad = at(w["gradient"], w["elements"], torch.float32).view(w["shape"])
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9)
    x = torch.ones(8, w["shape"][0], device=weight.device)
    address = weight.data_ptr(), weight.grad.data_ptr()
    for _ in range(3):
        weight.grad.zero_()
        (x @ weight).pow(2).mean().backward()
        optimizer.step()
    if cuda:
        torch.cuda.synchronize()
    assert address == (weight.data_ptr(), weight.grad.data_ptr()), "nothing moved"
    reduced = at(span["offset"], span["elements"], torch.float32)
    assert torch.equal(reduced[:weight.numel()], weight.grad.flatten()), "the span to reduce begins with the gradients"
    after = ask("attest")
    changed = [b["tensor"] for b, a in zip(before, after) if b != a]
    assert changed == ["weight"], changed
    print("3 steps in place: the other process sees %s changed, nothing else" % changed)

    # Alpha from the table, inside a graph's lifetime.
    entry = view["entry"]
    alpha = at(entry + 16, 1, torch.float32)
    out = torch.empty(1, device=weight.device)

    def forward():
        torch.mul(alpha, 2, out=out)

    if cuda:
        graph = torch.cuda.CUDAGraph()
        forward()
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            forward()
        forward = graph.replay
    for command, want in (("blend", 1.0), ("hold", 2.0)):
        start = time.perf_counter()
        ask(command)
        took = time.perf_counter() - start
        forward()
        assert out.item() == want, (command, out.item())
        print("%s: seen by %s %.0f us after asking" % (command, "the same graph" if cuda else "the same tensor", took * 1e6))

    # The other process dies; its memory does not.
    os.kill(pid, signal.SIGKILL)
    assert lines.readline() == "", "its socket is closed"
    kept = weight.detach().clone()
    weight.grad.zero_()
    (x @ weight).pow(2).mean().backward()
    optimizer.step()
    assert not torch.equal(kept, weight) and bool(torch.isfinite(weight).all())
    print("the other process was killed, and training goes on")
    if cuda:
        figures()


def read_exactly(s, n):
    b = b""
    while len(b) < n:
        part = s.recv(n - len(b))
        assert part, "the offer was cut off"
        b += part
    return b


def attach(s):
    """Returns the arena as a tensor of bytes, and whether it is a GPU's."""
    (n,) = struct.unpack("<I", read_exactly(s, 4))
    offer = json.loads(read_exactly(s, n))
    want = sum("ipc" not in c for c in offer["chunks"])
    fds = []
    while len(fds) < want:
        _, control, _, _ = s.recvmsg(1, socket.CMSG_SPACE(4 * 253))
        for _, _, data in control:
            fds += array.array("i", data[:len(data) // 4 * 4])
    if offer["kind"] == "host":
        # One file behind all chunks: it is as large as the arena.
        return torch.frombuffer(mmap.mmap(fds[0], offer["size"]), dtype=torch.uint8), False
    return map_cuda(offer, fds), True


class Location(ctypes.Structure):
    _fields_ = [("kind", ctypes.c_int), ("id", ctypes.c_int)]


class Access(ctypes.Structure):
    _fields_ = [("location", Location), ("flags", ctypes.c_int)]


class Handle(ctypes.Structure):
    _fields_ = [("bytes", ctypes.c_ubyte * 64)]


def map_cuda(offer, fds):
    torch.cuda.init()
    torch.zeros(1, device="cuda")  # torch's context, on this thread
    lib = ctypes.CDLL("libcuda.so.1")

    def call(name, *args):
        code = getattr(lib, name)(*args)
        assert code == 0, "%s: error %d" % (name, code)

    base, size = ctypes.c_uint64(), ctypes.c_size_t(offer["size"])
    if "ipc" in offer["chunks"][0]:
        import base64
        handle = Handle((ctypes.c_ubyte * 64).from_buffer_copy(base64.b64decode(offer["chunks"][0]["ipc"])))
        call("cuIpcOpenMemHandle_v2", ctypes.byref(base), handle, 1)
    else:
        call("cuMemAddressReserve", ctypes.byref(base), size, ctypes.c_size_t(offer["granularity"]), ctypes.c_uint64(0), ctypes.c_uint64(0))
        access = Access(Location(1, torch.cuda.current_device()), 3)
        for chunk, fd in zip(offer["chunks"], fds):
            at, n, handle = ctypes.c_uint64(base.value + chunk["offset"]), ctypes.c_size_t(chunk["size"]), ctypes.c_uint64()
            call("cuMemImportFromShareableHandle", ctypes.byref(handle), ctypes.c_void_p(fd), 1)
            call("cuMemMap", at, n, ctypes.c_size_t(0), handle, ctypes.c_uint64(0))
            call("cuMemSetAccess", at, n, ctypes.byref(access), ctypes.c_size_t(1))
            os.close(fd)

    class Bytes:
        __cuda_array_interface__ = {"shape": (offer["size"],), "typestr": "|u1", "data": (base.value, False), "version": 3}

    return torch.as_tensor(Bytes(), device="cuda:%d" % torch.cuda.current_device())


def figures():
    """What torch takes for the same, beside the figures of gpu_test.go."""
    n = 1 << 30
    a = torch.empty(n // 4, device="cuda")
    b = torch.empty_like(a)
    alpha = torch.zeros(1, device="cuda")
    for name, count, f in (("copy (read plus written)", 2 * n, lambda: b.copy_(a)), ("uniform_", n, lambda: a.uniform_(-1, 1)), ("sum", n, lambda: a.sum()),
                           ("zero_", n, lambda: a.zero_())):
        f()
        torch.cuda.synchronize()
        start, rounds = time.perf_counter(), 50
        for _ in range(rounds):
            f()
        torch.cuda.synchronize()
        print("torch, 1024 MiB: %8.1f GB/s: %s" % (count * rounds / (time.perf_counter() - start) / 1e9, name))
    start, rounds = time.perf_counter(), 2000
    for _ in range(rounds):
        alpha.fill_(0.5)
        torch.cuda.synchronize()
    print("torch: an in-place fill of one alpha, until the GPU has finished: %.1f us" % ((time.perf_counter() - start) / rounds * 1e6))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
