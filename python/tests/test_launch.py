"""esperd.launch with the real program."""

import os
import signal
import subprocess
import sys
import tempfile
import time
import unittest

import esperd
from tests.world import BINARY, needs_esperd


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as f:
        return f.read().rsplit(")", 1)[1].split()[0] != "Z"


def gone(pid, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not alive(pid):
            return True
        time.sleep(0.02)
    return False


@needs_esperd
class Launch(unittest.TestCase):
    def setUp(self):
        directory = tempfile.TemporaryDirectory(prefix="launch")
        self.addCleanup(directory.cleanup)
        self.dir = directory.name
        environment = dict(os.environ)
        self.addCleanup(os.environ.update, environment)
        for name in ("ESPERD_SOCKET", "RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)

    def launch(self, *flags, **options):
        return esperd.launch("--data-dir", self.dir, *flags, binary=BINARY, log=os.path.join(self.dir, "log"), **options)

    def test_connect_finds_it_and_it_ends_in_order(self):
        with self.launch("--run-id", "here") as launched:
            self.assertEqual((launched.data_dir, launched.run_id), (self.dir, "here"))
            with esperd.connect(slots=["r0c0"]) as ep:
                self.assertEqual((ep.session.run_id, ep.step_epoch(0).epoch), ("here", 0))
        self.assertFalse(alive(launched.pid))
        with open(os.path.join(self.dir, "log"), encoding="utf-8") as f:
            self.assertIn('"msg":"stopped"', f.read())
        self.assertRaisesRegex(esperd.Unavailable, "no esperd to connect to", esperd.connect)
        launched.close()

    def test_what_it_says_when_it_does_not_start(self):
        with self.assertRaisesRegex(esperd.Unavailable, r"exec --data-dir .* --rank 3 ended with status 2: the log .* ends with\n.*--rank is set and --world-size is not"):
            self.launch("--rank", "3")
        with self.assertRaisesRegex(esperd.Unavailable, "cannot start /nonexistent"):
            esperd.launch(binary="/nonexistent")
        path, os.environ["PATH"] = os.environ["PATH"], self.dir
        binary = os.environ.pop("ESPERD_BINARY", None)
        try:
            self.assertRaisesRegex(esperd.Unavailable, "no esperd on PATH", esperd.launch)
        finally:
            os.environ["PATH"] = path
            if binary:
                os.environ["ESPERD_BINARY"] = binary

    def test_it_does_not_outlive_the_trainer(self):
        for how in (signal.SIGKILL, signal.SIGTERM, None):
            with self.subTest(how=how):
                code = ("import esperd, sys, os, time\n"
                        f"h = esperd.launch('--data-dir', {self.dir!r}, binary={BINARY!r}, log={os.path.join(self.dir, 'log')!r})\n"
                        "if os.fork() == 0: time.sleep(60 if len(sys.argv) > 1 else 0); os._exit(0)\n"  # a worker that stays behind
                        "print(h.pid, flush=True)\n"
                        "time.sleep(0 if len(sys.argv) == 1 else 60)\n")
                trainer = subprocess.Popen([sys.executable, "-c", code] + (["stay"] if how else []), stdout=subprocess.PIPE, start_new_session=True)
                self.addCleanup(lambda t=trainer: self.clean(t))
                pid = int(trainer.stdout.readline())
                if how:
                    trainer.send_signal(how)
                trainer.wait(30)
                self.assertTrue(gone(pid))

    def clean(self, trainer):
        trainer.stdout.close()
        try:
            os.killpg(trainer.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass


if __name__ == "__main__":
    unittest.main()
