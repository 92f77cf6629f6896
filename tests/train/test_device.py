"""What is set up before a run."""

import resource

import torch

from vshift.train.device import keep_freed_memory


def test_memory_is_not_given_back_between_steps():
    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    keep_freed_memory()
    for _ in range(20):  # the first ones may leave gaps that are too small for the next
        torch.ones(2**24)  # 64 MiB
    before = faults()
    for _ in range(3):
        torch.ones(2**24)
    assert faults() - before < 1000  # pages of 4 KiB; 49,152 where each time all are new
