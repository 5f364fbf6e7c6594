"""The package as pip installs it."""

import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
import unittest
import zipfile

HERE = pathlib.Path(__file__).parent.parent


class Package(unittest.TestCase):
    def build(self, hook, directory):
        subprocess.run([sys.executable, "-c", f"import build_backend; print(build_backend.{hook}({directory!r}))"], cwd=HERE, check=True, stdout=subprocess.DEVNULL)
        return {p.name: p for p in pathlib.Path(directory).iterdir()}

    def test_a_wheel_has_everything_and_works_alone(self):
        with tempfile.TemporaryDirectory() as directory:
            wheel = self.build("build_wheel", directory)["esperd-0.1.0-py3-none-any.whl"]
            with zipfile.ZipFile(wheel) as z:
                names = z.namelist()
                z.extractall(os.path.join(directory, "site"))
            for file in ("esperd/__init__.py", "esperd/py.typed", "esperd-0.1.0.dist-info/METADATA", "esperd-0.1.0.dist-info/RECORD"):
                self.assertIn(file, names)
            self.assertFalse([n for n in names if "test" in n])
            kernels = HERE.parent / "gpuexec/kernels/esperd.ptx"  # which the package has by a link
            self.assertEqual((pathlib.Path(directory) / "site/esperd/esperd.ptx").read_bytes(), kernels.read_bytes())
            out = subprocess.run([sys.executable, "-S", "-I", "-c", f"import sys; sys.path.insert(0, {directory + '/site'!r}); import esperd; print(esperd.__file__)"],
                                 check=True, stdout=subprocess.PIPE, cwd=directory)
            self.assertIn(directory.encode(), out.stdout)

    def test_source_and_editable_builds(self):
        with tempfile.TemporaryDirectory() as directory:
            built = self.build("build_sdist", directory)
            self.assertEqual(set(built), {"esperd-0.1.0.tar.gz"})
            with tarfile.open(built["esperd-0.1.0.tar.gz"]) as sdist:
                self.assertTrue(all(m.isfile() for m in sdist), "links lead nowhere in it")
                self.assertGreater(sdist.getmember("esperd-0.1.0/esperd/esperd.ptx").size, 10_000)
            with zipfile.ZipFile(self.build("build_editable", directory)["esperd-0.1.0-py3-none-any.whl"]) as z:
                self.assertEqual(z.read("esperd.pth").decode().strip(), str(HERE.resolve()))


if __name__ == "__main__":
    unittest.main()
