"""GPUs that a run on several processes leaves idle are counted."""

import pytest

from daisy_jax.parallel import unused_gpus, visible_gpus


@pytest.mark.parametrize(
    ("setting", "files", "count"),
    [
        (None, 8, 8),
        ("0,1, 5", 8, 3),
        ("GPU-1b2a,MIG-77", 0, 2),
        ("", 8, 0),
        ("2,-1,3", 8, 1),
    ],
)
def test_visible_gpus_are_counted_as_cuda_counts_them(setting, files, count):
    assert visible_gpus(setting, [f"/dev/nvidia{i}" for i in range(files)]) == count


@pytest.mark.parametrize(
    ("visible", "hosts", "devices", "idle"),
    [
        (8, "a", [1], [7]),
        (8, "aaaaaaaa", [1] * 8, [0] * 8),
        (4, "abab", [1] * 4, [2, 2, 0, 0]),  # said once on each host
        (1, "aaaa", [1] * 4, [0] * 4),  # Slurm shows each task its own
        (8, "a", [8], [0]),
    ],
)
def test_unused_gpus_are_those_that_no_process_of_the_host_has(visible, hosts, devices, idle):
    found = [unused_gpus(visible, hosts, devices, i) for i in range(len(hosts))]
    assert found == idle
