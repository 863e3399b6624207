import pytest
import torch

from csip.device import resolve_device
from csip.errors import CsipError


@pytest.fixture
def machine(monkeypatch):
    """A machine with so many CUDA devices, on which this process has a number."""

    def make(devices, local_rank=0):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: devices > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
        monkeypatch.setenv("LOCAL_RANK", str(local_rank))

    return make


@pytest.mark.parametrize(
    ("devices", "rank", "name", "device"),
    [
        (0, 0, "auto", "cpu"),
        (0, 1, "cpu", "cpu"),
        (2, 0, "cpu", "cpu"),
        (2, 0, "auto", "cuda:0"),
        (2, 1, "auto", "cuda:1"),
        (2, 1, "cuda", "cuda:1"),
        (2, 1, "cuda:0", "cuda:0"),
    ],
)
def test_each_process_takes_the_device_of_its_own_number(machine, devices, rank, name, device):
    machine(devices, rank)
    assert resolve_device(name) == device


@pytest.mark.parametrize(
    ("devices", "rank", "name", "index"), [(0, 0, "cuda", 0), (2, 0, "cuda:2", 2), (2, 2, "auto", 2), (1, 1, "cuda", 1)]
)
def test_a_device_that_is_not_there_is_said(machine, devices, rank, name, index):
    machine(devices, rank)
    with pytest.raises(CsipError, match=rf"which is device {index} here, but torch finds {devices} CUDA devices"):
        resolve_device(name)


def test_a_name_that_is_no_device_is_refused():
    with pytest.raises(ValueError, match=r"runtime\.device: got 'abacus', expected 'auto', 'cpu', 'cuda' or 'cuda:N'"):
        resolve_device("abacus")
