"""Who a trainer is, and where its esperd."""

import unittest

import esperd
from esperd._identity import fingerprint, identity, socket_path


class Identity(unittest.TestCase):
    def test_precedence(self):
        env = {"PMI_RANK": "1", "PMI_SIZE": "9"}
        for more, want in (({}, (1, 9)), ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "8"}, (2, 8)),
                           ({"SLURM_PROCID": "3", "SLURM_NTASKS": "7"}, (3, 7)), ({"RANK": "0", "WORLD_SIZE": "6"}, (0, 6)),
                           ({"ESPERD_RANK": " 4", "ESPERD_WORLD_SIZE": "5"}, (4, 5))):
            env.update(more)
            self.assertEqual(identity(None, None, env), want)
        self.assertEqual(identity(1, 2, env), (1, 2))
        self.assertEqual(identity(None, None, {"RANK": "", "WORLD_SIZE": ""}), (0, 1))

    def test_halves_and_nonsense(self):
        for rank, world, env, said in (
            (None, None, {"RANK": "0", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, r"RANK \(from torchrun\) is given and WORLD_SIZE is not"),
            (None, 4, {}, "world_size= is given and rank= is not"),
            (4, 4, {}, "rank= is 4 and world_size= is 4, expected a rank from 0"),
            (-1, 4, {}, "rank= is -1"),
            (None, None, {"RANK": "one", "WORLD_SIZE": "2"}, "RANK is 'one', expected a whole number"),
        ):
            with self.assertRaisesRegex(esperd.ConfigMismatch, said):
                identity(rank, world, env)

    def test_fingerprint(self):
        self.assertEqual(fingerprint({}, 4), "")
        torchrun = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500", "SLURM_JOB_ID": "7"}
        self.assertEqual(fingerprint(torchrun, 4), "10.0.0.1:29500/4/0")
        self.assertEqual(fingerprint({**torchrun, "TORCHELASTIC_RESTART_COUNT": "2"}, 4), "10.0.0.1:29500/4/2")
        self.assertEqual(fingerprint({**torchrun, "ESPERD_ROUND": "third"}, 4), "third")
        self.assertEqual(fingerprint({"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "1", "SLURM_RESTART_COUNT": "3"}, 2), "slurm-7:1/2/3")

    def test_socket(self):
        env = {"ESPERD_SOCKET": "/run/e{rank}"}
        self.assertEqual(socket_path("/a/{rank}/b", "/launched", env, 3), "/a/3/b")
        self.assertEqual(socket_path(None, "/launched", env, 3), "/launched")
        self.assertEqual(socket_path(None, None, env, 3), "/run/e3")
        for word in ("ESPERD_SOCKET is not set", "esperd exec -- python train.py", "torchrun", r"esperd.launch\(\)", "world size 1"):
            with self.assertRaisesRegex(esperd.Unavailable, word):
                socket_path(None, None, {}, 0)


if __name__ == "__main__":
    unittest.main()
