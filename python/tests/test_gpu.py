"""Modules in a GPU's arena, and fingerprints taken there: all of the client but
torch.cuda, against the stub of libcuda that a real esperd uses, too."""

import array
import atexit
import base64
import gc
import importlib.util
import json
import os
import pathlib
import resource
import socket
import subprocess
import sys
import tempfile
import types
import unittest
from unittest import mock

import esperd
from tests import stubgpu
from tests.world import World, needs_esperd

if importlib.util.find_spec("torch") and stubgpu.COMPILER:
    import torch
    from torch import nn

    from esperd import _cuda, _fingerprint, _handover, _mapped, _torch_gpu

    MiB = 1 << 20
    VECTORS = pathlib.Path(__file__).resolve().parents[2] / "gpuexec/element/vectors.json"
    DIRECTORY = tempfile.TemporaryDirectory(prefix="stub")
    atexit.register(DIRECTORY.cleanup)
    STUB = stubgpu.StubGpu(stubgpu.build(DIRECTORY.name))
    FIRST, SECOND = "GPU-00030609-0c0f-1215-181b-1e2124272a2d", "GPU-0104070a-0d10-1316-191c-1f2225282b2e"

    def live_now():
        """Return how many of the driver's objects there are, once all garbage is gone."""
        gc.collect()
        return STUB.get("live")

    class StubTest(unittest.TestCase):
        def setUp(self):
            STUB.reset()
            STUB.current, STUB.waits = 0, 0
            for name, f in STUB.replaced().items():
                self.enter(mock.patch.object(_torch_gpu, name, f))
            self.enter(mock.patch.object(_cuda, "LIBRARY", STUB.path))
            self.enter(mock.patch.multiple(_cuda, _driver=None, _gpus={}))

        def enter(self, context):
            context.__enter__()
            self.addCleanup(context.__exit__, None, None, None)

    def offer(*chunks, granularity=2 * MiB, size=16 * MiB, uuid=FIRST):
        return {"kind": "cuda", "uuid": uuid, "size": size, "granularity": granularity, "chunks": [{"offset": o, "size": n, "serial": s, "at": 0} for o, n, s in chunks]}

    class Files:
        """What esperd exports: one file of memory for each chunk."""

        def __init__(self, test):
            self.test, self.fds = test, {}

        def of(self, o):
            for c in o["chunks"]:
                if c["serial"] not in self.fds:
                    fd = self.fds[c["serial"]] = os.memfd_create("chunk")
                    self.test.addCleanup(os.close, fd)
                    os.ftruncate(fd, c["size"])
                    os.pwrite(fd, bytes([c["serial"]]), 0)
            return iter([self.fds[c["serial"]] for c in o["chunks"]])

    class Torch(unittest.TestCase):
        """What the other tests replace, as far as it goes without a GPU."""

        def test_a_torch_without_cuda(self):
            self.assertIsNone(_torch_gpu.current())
            self.assertIsNone(_torch_gpu.of(torch.zeros(1)))

        def test_a_torch_with_it(self):
            waited = []
            gpu = types.SimpleNamespace(is_cuda=True, device=types.SimpleNamespace(index=1))
            with mock.patch.multiple(torch.cuda, is_available=lambda: True, current_device=lambda: 1, synchronize=waited.append,
                                     current_stream=lambda ordinal: types.SimpleNamespace(cuda_stream=70 + ordinal)):
                with mock.patch.object(torch.version, "cuda", "12.4"):
                    self.assertEqual((_torch_gpu.current(), _torch_gpu.of(gpu), _torch_gpu.stream(2)), (1, 1, 72))
                    _torch_gpu.wait(3)
                self.assertEqual((_torch_gpu.current(), _torch_gpu.of(gpu)), (None, None), "AMD's are no GPUs of libcuda")
            self.assertEqual(waited, [3])
            self.assertEqual(torch.device(_torch_gpu.device(1)), torch.device("cuda", 1))

    class Mapping(StubTest):
        """Without an esperd."""

        def test_chunks_come_and_go_and_no_address_moves(self):
            files, first = Files(self), offer((0, 2 * MiB, 1), (4 * MiB, 4 * MiB, 2))
            live = live_now()
            m = _mapped.mapped(first)
            m.follow(first["chunks"], files.of(first))
            t = m.tensor()
            self.assertEqual([t[0].item(), t[4 * MiB].item(), len(t)], [1, 2, 16 * MiB])
            t[4 * MiB + 1] = 77
            self.assertEqual(os.pread(files.fds[2], 2, 0), bytes([2, 77]))
            later = offer((0, 2 * MiB, 1), (2 * MiB, 2 * MiB, 3), (4 * MiB, 4 * MiB, 4))  # another one where the second was
            waits = STUB.waits
            m.follow(later["chunks"], files.of(later))
            self.assertGreater(STUB.waits, waits, "nothing is unmapped that torch still uses")
            self.assertEqual([t[0].item(), t[2 * MiB].item(), t[4 * MiB].item()], [1, 3, 4])
            part = t[:16].view(torch.float32)
            del m, t
            self.assertGreater(live_now(), live, "a tensor keeps it")
            self.assertEqual(part.view(torch.uint8)[0].item(), 1)
            del part
            self.assertEqual(live_now() - live, 1, "but for the context, all is given back")
            self.assertEqual(STUB.get("pushed"), 0)

        def test_garbage_that_is_collected_while_the_gpu_is_locked(self):
            live, first = live_now(), offer((0, 2 * MiB, 1))
            m = _mapped.mapped(first)
            m.follow(first["chunks"], Files(self).of(first))
            g, cycle = _cuda.gpu(0), [m.tensor()]
            cycle.append(cycle)
            compiled = g._compiled

            def collects():
                self.assertTrue(g._lock.acquire(blocking=False), "else it waits for itself")
                g._lock.release()
                self.assertLess(live_now(), held)
                return compiled()

            gc.disable()
            self.addCleanup(gc.enable)
            del m, cycle
            held = STUB.get("live")
            self.assertGreater(held, live)
            with g, mock.patch.object(g, "_compiled", collects):
                g.kernel("esperd_fingerprint")
            self.assertEqual(STUB.get("pushed"), 0)

        def test_tensors_that_outlive_the_interpreter(self):
            script = ("import ctypes, sys, torch; from esperd import _dlpack\n"
                      "memory = ctypes.create_string_buffer(bytes(range(64)), 64)\n"
                      "sys.kept = _dlpack.bytes_over(memory, ctypes.addressof(memory), 64, (_dlpack.CPU, 0))[8:].view(torch.float32)\n"
                      "ctypes.pythonapi.Py_IncRef(ctypes.py_object(sys.kept))\n"  # one is never freed
                      "more = _dlpack.bytes_over(memory, ctypes.addressof(memory), 64, (_dlpack.CPU, 0))\n"
                      "assert more[3:5].tolist() == [3, 4] and len(_dlpack._held) == 2\n"
                      "del more\n"
                      "assert len(_dlpack._held) == 1\n")
            subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, cwd=pathlib.Path(__file__).parents[1])

        def test_every_call_fails_once(self):
            o, files = offer((0, 2 * MiB, 1), (2 * MiB, 2 * MiB, 2)), Files(self)

            def use():
                m = _mapped.mapped(o)
                m.follow(o["chunks"], files.of(o))
                return m

            m = use()
            del m
            live = live_now()
            for name in ("cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid", "cuDeviceGetAttribute", "cuDevicePrimaryCtxRetain",
                         "cuCtxPushCurrent_v2", "cuCtxPopCurrent_v2", "cuMemAddressReserve", "cuMemImportFromShareableHandle", "cuMemMap", "cuMemRelease",
                         "cuMemSetAccess"):
                for code in (2, 304):
                    for after in (0, 1):
                        with self.subTest(name=name, code=code, after=after):
                            with mock.patch.multiple(_cuda, _driver=None, _gpus={}):
                                STUB.set("live", live)
                                STUB.fail(name, code, after)
                                try:
                                    m = use()
                                except esperd.EsperdError as error:
                                    self.assertRegex(str(error), rf"CUDA: {name}: .* \({code}\): ")
                                else:
                                    self.assertEqual(after, 1, "it was called once")
                                    del m
                                STUB.reset()
                                if name not in ("cuCtxPopCurrent_v2", "cuMemRelease"):  # after which something is left
                                    self.assertIn(STUB.get("live") - live, (0, 1), "all but a context is given back")
                                    self.assertEqual(STUB.get("pushed"), 0)
                                STUB.set("pushed", 0)
                                m = use()
                                self.assertEqual(m.tensor()[2 * MiB].item(), 2)
                                del m
            STUB.set("live", live)

        def test_what_failed_is_tried_again(self):
            files, first = Files(self), offer((0, 2 * MiB, 1))
            m = _mapped.mapped(first)
            m.follow(first["chunks"], files.of(first))
            t = m.tensor()
            more = offer((0, 2 * MiB, 1), (2 * MiB, 2 * MiB, 2), (6 * MiB, 2 * MiB, 3))
            for name in ("cuMemMap", "cuMemSetAccess", "cuMemImportFromShareableHandle"):
                STUB.fail(name, 2, 1)
                self.assertRaisesRegex(esperd.EsperdError, "OUT_OF_MEMORY", m.follow, more["chunks"], files.of(more))
                self.assertEqual([t[0].item(), t[2 * MiB].item()], [1, 2], "what was mapped is")
                m.follow(more["chunks"], files.of(more))
                self.assertEqual(t[6 * MiB].item(), 3)
                m.follow(first["chunks"], files.of(first))
            STUB.fail("cuMemUnmap", 719)
            m.follow(more["chunks"], files.of(more))
            self.assertRaisesRegex(esperd.EsperdError, "719", m.follow, first["chunks"], files.of(first))
            STUB.reset()
            m.follow(first["chunks"], files.of(first))

        def test_libraries_that_cannot_be_used(self):
            with tempfile.TemporaryDirectory() as directory:
                text = os.path.join(directory, "text.so")
                pathlib.Path(text).write_bytes(b"not a library")
                for path, why in ((os.path.join(directory, "none.so"), "install NVIDIA's driver"), (text, "cannot open"),
                                  (stubgpu.build(directory, "-DSTUB_OLD"), "lacks cuMemAddressReserve.*CUDA 11.0 or newer")):
                    with mock.patch.object(_cuda, "LIBRARY", path):
                        self.assertRaisesRegex(esperd.EsperdError, why, _cuda.gpu, 0)
            for what, value, why in (("version", 10020, "of CUDA 10.2: expected 11.0"), ("devices", 0, r"\(100\)")):
                STUB.reset()
                STUB.set(what, value)
                self.assertRaisesRegex(esperd.EsperdError, why, _cuda.gpu, 0)

        def test_offers_that_make_no_sense(self):
            self.assertRaisesRegex(esperd.ConfigMismatch, f"{FIRST}, {SECOND}.*CUDA_VISIBLE_DEVICES", _mapped.mapped, offer((0, 2 * MiB, 1), uuid="GPU-1"))
            self.assertRaisesRegex(esperd.Refused, "expected host or cuda", _mapped.mapped, {**offer(), "kind": "tpu"})
            short = {**offer(), "chunks": [{"offset": 0, "size": MiB, "serial": 1, "ipc": base64.b64encode(b"x").decode()}]}
            self.assertRaisesRegex(esperd.EsperdError, "expected 64", _mapped.mapped, short)
            short["chunks"][0]["ipc"] = base64.b64encode(bytes(64)).decode()
            self.assertRaisesRegex(esperd.EsperdError, "cuIpcOpenMemHandle_v2", _mapped.mapped, short)

        def test_a_forked_child_gives_nothing_back(self):
            files, o = Files(self), offer((0, 2 * MiB, 1))
            m = _mapped.mapped(o)
            m.follow(o["chunks"], files.of(o))
            live = live_now()
            pid = os.fork()
            if pid == 0:
                del m
                os._exit(0 if live_now() == live else 1)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
            self.assertEqual(m.tensor()[0].item(), 1)

    def sums(tensors):
        return [_fingerprint._total(_fingerprint._start(_cuda.gpu(0), [_fingerprint._in_one_piece(t)]).tolist()) for t in tensors]

    class Fingerprints(StubTest):
        def test_known_answers(self):
            known = [v for v in json.loads(VECTORS.read_text()) if "fill" not in v]
            self.assertGreater(len(known), 6)
            tensors = [torch.tensor([(i * i * 7 + i * 13) % 251 for i in range(v["bytes"])], dtype=torch.uint8) for v in known]
            self.assertEqual([f"{s:032x}" for s in sums(tensors)], [v["hi"] + v["lo"] for v in known])
            self.assertGreater(STUB.get("launches"), 0)
            self.assertEqual(STUB.get("stream"), 1, "on torch's stream")
            self.assertEqual(STUB.get("pushed"), 0)

        def test_every_call_fails_once(self):
            t = [torch.arange(100.0)]
            want = _fingerprint.fingerprints(t, 0)
            for name in ("cuModuleLoadDataEx", "jit", "cuModuleGetFunction", "cuLaunchKernel", "cuCtxPushCurrent_v2"):
                with mock.patch.multiple(_cuda, _driver=None, _gpus={}):
                    STUB.fail(name, 2)
                    with self.assertRaisesRegex(esperd.EsperdError, "ptxas fatal: as the test wanted" if name == "jit" else name):
                        _fingerprint.fingerprints(t, 0)
                    STUB.reset()
                    self.assertEqual(STUB.get("pushed"), 0)
                    self.assertEqual(_fingerprint.fingerprints(t, 0), want)

    def module():
        return nn.Sequential(nn.Linear(1000, 1100), nn.ReLU(), nn.Linear(40, 6).bfloat16(), nn.Linear(6, 5).half())

    def blueprint():
        parameters = [(n, tuple(p.shape), str(p.dtype).replace("torch.", "")) for n, p in module().named_parameters()]
        return esperd.Blueprint("mlp", tuple(esperd.Tensor(n, shape, dtype, uniform=0.25) for n, shape, dtype in parameters))

    @needs_esperd
    class WithEsperd(StubTest):
        def world(self, size=1, device="cuda", **environment):
            return World(self, size, "--device", device, environment={"LD_LIBRARY_PATH": DIRECTORY.name, **environment})

        def connect(self, world):
            config = esperd.SlotConfig(blueprints=(blueprint(),))
            return world.connect(self, slots={"a": config, "b": config}, gates=esperd.Gates(permissive=True, min_blending_epochs=0), arena=True)

        def bits(self, seed):
            return torch.cat([p.detach().reshape(-1).view(torch.uint8) for p in seed.parameters()])

        def assertBits(self, seed, want, why=""):
            self.assertTrue(torch.equal(self.bits(seed), want), why)

        def grown(self, ep, slot="a", epoch=0):
            ep.germinate(slot, "mlp")
            ep.advance(slot)
            ep.step_epoch(epoch)
            seed = module()
            ep.attach(seed, slot=slot)
            return seed

        def test_a_life_in_it(self):
            (on_host,) = self.connect(self.world(device="host"))
            want = self.bits(self.grown(on_host))
            (ep,) = self.connect(self.world())
            seed = self.grown(ep)
            self.assertEqual(ep._memory()._mapped.__class__.__name__, "CudaMemory")
            self.assertBits(seed, want, "the same bits as on the host")
            with mock.patch.object(_torch_gpu, "wait", side_effect=RuntimeError("a kernel of torch's failed")):
                self.assertRaises(RuntimeError, ep.step_epoch, 1)  # torch's kernels end before esperd is asked
                self.assertRaises(RuntimeError, ep.attest)
            ep.attest()
            optimizer = torch.optim.SGD([seed[0].weight], lr=0.1)
            seed[0](torch.ones(2, 1000)).sum().backward()
            optimizer.step()
            other = self.grown(ep, "b", 1)
            self.assertEqual([p.data_ptr() for p in seed.parameters()], [ep._memory()._at(b.parameter, b).data_ptr() for b in ep._memory()._seats["a"].bound])
            before = len(ep._memory()._mapped._chunks)
            alpha, kept = ep.alpha("a"), seed[0].weight.detach().clone()
            self.assertEqual(alpha.item(), 0)
            ep.prune("b")
            ep.step_epoch(2)
            self.assertLess(len(ep._memory()._mapped._chunks), before, "its memory is the GPU's again")
            self.assertEqual(other[0].weight.abs().sum().item(), 0, "what is left of it is its own, and was zeroed")
            self.assertTrue(torch.equal(seed[0].weight, kept))

        def test_esperd_is_killed_and_started_anew(self):
            world = self.world()
            (ep,) = self.connect(world)
            seed = self.grown(ep)
            with torch.no_grad():
                seed[0].weight.fill_(3)
                seed[0].weight.grad.fill_(4)
            want, address, alpha = self.bits(seed), seed[0].weight.data_ptr(), ep.alpha("a")
            self.assertEqual(alpha.item(), 0)
            world.kill(0)
            self.assertBits(seed, want, "its memory outlives it")
            world.start(0)
            live = live_now()
            STUB.fail("cuMemMap", 2)
            self.assertRaisesRegex(esperd.EsperdError, "cuMemMap", ep.step_epoch, 1)
            self.assertBits(seed, want)
            self.assertEqual(live_now(), live)
            f = ep.step_epoch(2)
            self.assertEqual((f.lost, f.moved), ((), True))
            self.assertBits(seed, want)
            self.assertEqual(seed[0].weight.grad.sum().item(), 4 * seed[0].weight.numel())
            self.assertNotEqual(seed[0].weight.data_ptr(), address)
            ep.observe("a", accuracy=50.0, gradient_health=0.9)
            self.assertEqual(ep.advance("a").stage, "BLENDING")
            f = ep.step_epoch(3)
            self.assertFalse(f.moved)
            self.assertAlmostEqual(alpha.item(), f.slots["a"].alpha, 6)
            self.assertGreater(alpha.item(), 0)
            again = module()
            ep.attach(again, slot="a")
            self.assertBits(again, want, "esperd knows that they are there")
            self.assertEqual(live_now(), live, "the one from before is given back")
            ep.close()
            self.assertBits(seed, want)

        def test_a_driver_that_exports_no_files(self):
            (ep,) = self.connect(self.world(STUB_SET="exports=0"))
            live = live_now()
            seed = self.grown(ep)
            self.assertTrue(ep._memory()._mapped.lent)
            self.assertGreater(seed[0].weight.abs().sum().item(), 0)
            other = self.grown(ep, "b", 1)
            want, others = self.bits(seed), self.bits(other)
            ep.close()
            self.assertBits(seed, want, "it is the trainer's own")
            self.assertBits(other, others)
            self.assertLessEqual(live_now() - live, 1, "nothing of esperd's memory is open when it ends")

        def test_one_bit_on_one_rank_is_named(self):
            clients = self.connect(self.world(2))
            torch.manual_seed(0)
            own = {"w": torch.randn(300, 7), "t": torch.randn(40, 30).t(), "odd": torch.randn(101)[1:], "n": torch.tensor(3), "e": torch.zeros(0, 4, dtype=torch.bool),
                   "big": torch.randn(200_000), "h": torch.randn(9).bfloat16(), "c": torch.randn(5, dtype=torch.complex64).conj()}
            copies = [own, {n: t.clone() for n, t in own.items()}]
            prints = _handover.fingerprints(clients[0]._memory()._trainer, "main", list(own.values()))
            self.assertEqual(_fingerprint.fingerprints(list(own.values()), 0), prints, "the same as esperd's")
            with mock.patch.object(_fingerprint, "_COPIES_BYTES_MAX", 100):
                self.assertEqual(_fingerprint.fingerprints(list(own.values()), 0), prints, "in several parts")
            copies[1]["big"].view(torch.int32)[131_073] ^= 1
            launches = STUB.get("launches")
            world = World.on_all

            def step(epoch):
                return world(mock.Mock(size=2), lambda rank: clients[rank].step_epoch(epoch))

            for f in step(0):
                self.assertEqual(f.differs, ())
            for rank in range(2):
                clients[rank].attest(copies[rank])
            self.assertEqual(STUB.get("launches") - launches, 2)
            for f in step(1):
                self.assertEqual([(d.ranks, d.tensors) for d in f.differs], [((1,), ("big",))])

        def test_esperd_takes_the_gpu_that_torch_has(self):
            STUB.current = 1
            (ep,) = self.connect(self.world(device="auto"))
            seed = self.grown(ep)
            self.assertEqual(ep._memory()._mapped._gpu.uuid, SECOND)
            del seed

    @needs_esperd
    class Limits(unittest.TestCase):
        def test_a_process_that_may_open_no_more_files(self):
            ours, theirs = socket.socketpair(socket.AF_UNIX)
            self.addCleanup(ours.close)
            self.addCleanup(theirs.close)
            h = object.__new__(_handover.Handover)
            h._socket, h._path, h.offer = ours, "here", {"chunks": [{}] * 60}
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            theirs.sendmsg([b"f"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [ours.fileno()] * 60))])
            before = os.listdir("/proc/self/fd")
            resource.setrlimit(resource.RLIMIT_NOFILE, (10, hard))
            try:
                self.assertRaisesRegex(esperd.EsperdError, "ulimit -n", next, h.files())
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            self.assertEqual(len(os.listdir("/proc/self/fd")), len(before), "those that came are closed")
            theirs.close()
            self.assertRaisesRegex(esperd.Unavailable, "hung up", next, h.files())
