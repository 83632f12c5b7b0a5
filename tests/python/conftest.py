"""Every test that takes `device` runs on the CPU and, where a Hopper GPU is, on CUDA; else it says why not."""

import os

import pytest
import torch

# The problems are small: a few threads of the CPU backend do each in no time, all of a large host's would wait for each other.
os.environ.setdefault("SNAPMLA_NUM_THREADS", "4")

import snapmla  # noqa: E402, F401  (loads the ops)

# The expected results are many small fp64 products: one thread does each in microseconds, several wait for each other.
torch.set_num_threads(1)


def missing_cuda():
    """None, or why the CUDA cases cannot run here."""
    if not torch.cuda.is_available():
        return "torch.cuda.is_available() is False"
    ok, reason, _ = torch.ops.snapmla.backend_support("cuda")
    return None if ok else reason


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    if request.param == "cuda" and (reason := missing_cuda()):
        pytest.skip(reason)
    return torch.device(request.param)


@pytest.fixture
def cuda_device():
    if reason := missing_cuda():
        pytest.skip(reason)
    return torch.device("cuda")
