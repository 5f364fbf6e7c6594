"""Modules in the arena of a real esperd, where there is torch."""

import copy
import dataclasses
import importlib.util
import os
import unittest

import esperd
from tests.world import World, needs_esperd

if importlib.util.find_spec("torch"):
    import torch
    from torch import nn

    def module():
        return nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 6))

    @needs_esperd
    class InTheArena(unittest.TestCase):
        def grown(self, *flags, **options):
            """A world of one whose slot holds a seed that trains."""
            world = World(self, 1, *flags)
            mlp = esperd.Blueprint("mlp", tuple(esperd.Tensor(n, tuple(p.shape), uniform=0.25) for n, p in module().named_parameters()))
            options.setdefault("arena", True)
            (ep,) = world.connect(self, slots={"a": esperd.SlotConfig(blueprints=(mlp, "plain"))}, gates=esperd.Gates(permissive=True), **options)
            ep.germinate("a", "mlp")
            ep.advance("a")
            ep.step_epoch(0)
            return world, ep

        def test_what_was_not_attested_to_the_end_is_of_a_fence_that_is_over(self):
            _, ep = self.grown()
            ep.attest({"x": torch.ones(3)}, more=True)
            self.assertRaisesRegex(esperd.EsperdError, "x is there twice|\"x\" is there twice", ep.attest, {"x": torch.ones(3)})
            ep.attest({"x": torch.ones(3)}, more=True)
            ep.step_epoch(1)
            ep.attest({"x": torch.ones(3)})

        def test_what_has_moved_comes_back_and_what_was_changed_raises(self):
            _, ep = self.grown()
            seed = module()
            ep.attach(seed, slot="a")
            weight = seed[0].weight
            place, gradient = weight.data_ptr(), weight.grad.data_ptr()
            optimizer = torch.optim.SGD(seed.parameters(), lr=0.1, momentum=0.9)
            optimizer.zero_grad(set_to_none=True)
            seed(torch.ones(2, 6)).sum().backward()
            want = weight.grad.clone()
            self.assertNotEqual(weight.grad.data_ptr(), gradient)
            ep.step_epoch(1)
            self.assertEqual(weight.grad.data_ptr(), gradient)
            self.assertTrue(torch.equal(weight.grad, want))
            optimizer.step()
            before = weight.detach().clone()
            weight.data = weight.data.clone()
            optimizer.zero_grad(set_to_none=True)
            ep.step_epoch(2)
            self.assertEqual((weight.data_ptr(), weight.grad.data_ptr()), (place, gradient))
            self.assertTrue(torch.equal(weight, before))
            self.assertEqual(weight.grad.abs().sum().item(), 0, "there was no gradient")
            copied = copy.deepcopy(seed)
            copied[0].weight.data.zero_()
            self.assertTrue(torch.equal(weight, before))
            view = torch.zeros(2, 4, 6)
            weight.grad = view[0]
            self.assertRaisesRegex(esperd.ConfigMismatch, "gradient_as_bucket_view", ep.step_epoch, 3)
            weight.grad = None
            seed.half()
            self.assertRaisesRegex(esperd.ConfigMismatch, "float16.*half", ep.step_epoch, 3)

        def test_alone_there_is_nothing_to_average(self):
            _, ep = self.grown()
            seed = module()
            ep.attach(seed, slot="a")
            seed(torch.ones(2, 6)).sum().backward()
            want = seed[0].weight.grad.clone()
            self.assertGreater(want.abs().sum().item(), 0)
            ep.reduce()
            self.assertTrue(torch.equal(seed[0].weight.grad, want))
            arena = ep._memory()
            arena._trainer = dataclasses.replace(arena._trainer, world_size=2)
            self.assertRaisesRegex(esperd.Refused, "init_process_group", ep.reduce)

        def test_modules_that_do_not_fit(self):
            _, ep = self.grown()
            for wrong in (nn.Linear(6, 4), module().double(), nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 6))):
                self.assertRaisesRegex(esperd.ConfigMismatch, "in the log", ep.attach, wrong, slot="a")
            self.assertRaises(esperd.Refused, ep.alpha, "b")
            FlatParameter = type("FlatParameter", (nn.Parameter,), {})
            flat = nn.Linear(2, 2)
            flat.weight = FlatParameter(torch.zeros(2, 2))
            self.assertRaisesRegex(esperd.Refused, "attest", ep.attach, flat, slot="a")

        def test_an_esperd_that_is_started_anew(self):
            world, ep = self.grown()
            seed = module()
            ep.attach(seed, slot="a")
            with torch.no_grad():
                seed[0].weight.fill_(3)
            bits = [p.detach().clone() for p in seed.parameters()]
            world.kill(0)
            seed(torch.ones(2, 6)).sum().backward()  # memory outlives it
            world.start(0)
            f = ep.step_epoch(1)
            self.assertEqual(f.lost, (), "what it lost was still here")
            again = module()
            ep.attach(again, slot="a")
            for p, q, want in zip(seed.parameters(), again.parameters(), bits):
                self.assertTrue(torch.equal(p, want) and torch.equal(q, want))
                self.assertEqual(p.data_ptr(), q.data_ptr())

        def test_float32_copies_of_what_is_half(self):
            world = World(self, 1)
            half = esperd.Blueprint("half", (esperd.Tensor("weight", (5, 6), dtype="bfloat16", uniform=0.25, master=True), esperd.Tensor("bias", (5,), dtype="bfloat16")))
            (ep,) = world.connect(self, slots={"a": esperd.SlotConfig(blueprints=(half,))}, gates=esperd.Gates(permissive=True), arena=True)
            ep.germinate("a", "half")
            ep.advance("a")
            ep.step_epoch(0)
            self.assertRaisesRegex(esperd.Refused, "attach", ep.masters, "a")
            seed = nn.Linear(6, 5).bfloat16()
            ep.attach(seed, slot="a")
            masters = ep.masters("a")
            self.assertEqual(list(masters), ["weight"])
            master = masters["weight"]
            self.assertEqual((master.dtype, master.shape), (torch.float32, (5, 6)))
            self.assertTrue(torch.equal(master.bfloat16(), seed.weight), "the same numbers,")
            self.assertFalse(torch.equal(master, seed.weight.float()), "not rounded")
            optimizer = torch.optim.SGD([master], lr=0.5, momentum=0.9)
            master.grad = torch.full((5, 6), 1e-4)
            optimizer.step()
            with torch.no_grad():
                seed.weight.copy_(master)
            want = master.clone()
            world.kill(0)
            world.start(0)
            self.assertTrue(ep.step_epoch(1).moved)
            self.assertIs(ep.masters("a")["weight"], master)
            again = nn.Linear(6, 5).bfloat16()
            ep.attach(again, slot="a")
            self.assertTrue(torch.equal(ep.masters("a")["weight"], want), "it is in the new esperd's arena")
            self.assertTrue(torch.equal(again.weight, want.bfloat16()))
            with torch.no_grad():
                again.weight.fill_(0.5)
            ep.attach(again, slot="a", contents="module")
            self.assertTrue(torch.equal(ep.masters("a")["weight"], torch.full((5, 6), 0.5)))
            self.assertTrue(torch.equal(master, torch.full((5, 6), 0.5)), "both are views of one memory")

        def test_a_rewind_asks_for_the_contents(self):
            _, ep = self.grown()
            seed = module()
            ep.attach(seed, slot="a")
            saved, mark = copy.deepcopy(seed.state_dict()), ep.checkpoint()
            ep.step_epoch(1)
            self.assertEqual(ep.resume(mark).lost, ("a",))
            self.assertRaises(esperd.ArenaLost, ep.attach, module(), slot="a")
            seed.load_state_dict(saved)
            ep.loaded("a")
            ep.attach(module(), slot="a")
            for p, want in zip(seed.parameters(), saved.values()):
                self.assertTrue(torch.equal(p, want))

        def test_without_a_device(self):
            with self.assertRaisesRegex(esperd.ConfigMismatch, "--device"):
                self.grown("--device", "none")
            _, ep = self.grown("--device", "none", arena=False)
            self.assertRaisesRegex(esperd.ConfigMismatch, "without asking for one", ep.attach, module(), slot="a")
            ep.attest({"w": torch.ones(3), "n": torch.tensor(3), "e": torch.zeros(0, dtype=torch.bool), "h": torch.ones(2, dtype=torch.bfloat16)})
            self.assertEqual(ep.step_epoch(1).differs, ())

        def test_another_process_gets_no_arena(self):
            _, ep = self.grown()
            arena = ep._memory()
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    arena._catch_up()
                except esperd.EsperdError as error:
                    status = 0 if "second process" in str(error) else 2
                finally:
                    os._exit(status)
            self.assertEqual(os.waitpid(pid, 0)[1], 0)
