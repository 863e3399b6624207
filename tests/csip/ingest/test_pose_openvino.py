"""Converting .pt weights for OpenVINO, and what OpenVINO is told."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import csip
from csip.errors import WeightsError
from csip.ingest import pose_openvino
from csip.ingest.pose_openvino import compile_openvino, openvino_model
from csip.weights import digest_weights

WEIGHTS = Path(csip.__file__).parent / "assets" / "yolo11n-pose.pt"


def test_a_conversion_is_kept_and_whole(monkeypatch, tmp_path):
    """Two processes convert at once: whoever comes second uses the first one's folder, and leaves nothing behind."""
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    calls = []

    def export(weights, folder, network_size):
        calls.append(network_size)
        fresh = folder / "model_openvino_model"
        fresh.mkdir()
        (fresh / "model.xml").write_text(f"by {len(calls)}")
        if len(calls) == 1:
            with openvino_model(WEIGHTS, (64, 64)) as path:
                assert path.read_text() == "by 2"
        return fresh

    monkeypatch.setattr(pose_openvino, "_export", export)
    for _ in range(2):
        with openvino_model(WEIGHTS, (64, 64)) as path:
            assert path.read_text() == "by 2"
    assert calls == [(64, 64), (64, 64)]
    (folder,) = (tmp_path / "openvino").iterdir()
    assert folder.name.startswith(f"{digest_weights(WEIGHTS)[:16]}-64x64-ultralytics")


def test_a_cache_that_cannot_be_written_costs_time_only(monkeypatch, tmp_path, caplog):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "file"))

    def export(weights, folder, network_size):
        (folder / "model.xml").touch()
        return folder

    monkeypatch.setattr(pose_openvino, "_export", export)
    with openvino_model(WEIGHTS, (64, 64)) as path:
        assert path.is_file()
    assert "converted anew each time" in caplog.text


def test_converting_leaves_torch_its_threads(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    with openvino_model(WEIGHTS, (64, 64)) as path:
        assert path.is_file()
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_two_processes_may_convert_at_the_same_time(tmp_path):
    pytest.importorskip("openvino")
    code = """
import sys
from pathlib import Path
from csip.ingest.pose import PoseModel
model = PoseModel(Path(sys.argv[1]), frame_size=(64, 64), image_size=64, confidence=.1, iou=.7, max_people=9,
    device="cpu", engine="openvino")
print(model.engine)
"""
    environment = {**os.environ, "CSIP_CACHE": str(tmp_path)}
    root = Path(csip.__file__).parent.parent
    command = [sys.executable, "-c", code, str(WEIGHTS)]
    children = [subprocess.Popen(command, cwd=root, env=environment, stdout=subprocess.PIPE) for _ in range(3)]
    assert [child.communicate()[0] for child in children] == [b"openvino\n"] * 3
    assert len(list((tmp_path / "openvino").iterdir())) == 1


def test_openvino_comes_without_the_part_that_reports_home():
    script = """
from csip.ingest.pose_openvino import import_openvino
import_openvino()
from openvino.tools.ovc import telemetry_utils
print(telemetry_utils.tm.__name__)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == "openvino.tools.ovc.telemetry_stub"


def test_a_damaged_conversion_is_named_with_what_to_do(monkeypatch, tmp_path):
    pytest.importorskip("openvino")
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    with openvino_model(WEIGHTS, (64, 64)) as path:
        pass
    path.with_suffix(".bin").write_bytes(b"")
    message = r"64x64-.*: OpenVINO cannot load its own model .*\. Delete this folder and try again"
    with pytest.raises(WeightsError, match=message), openvino_model(WEIGHTS, (64, 64)) as path:
        compile_openvino(path, (64, 64), batch=1)


@pytest.mark.slow
def test_models_that_go_in_any_order_leave_the_stack_of_signal_handlers(monkeypatch, tmp_path):
    """Else a signal would be handled in memory that is freed: the process dies, or worse."""
    pytest.importorskip("openvino")
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    script = """
import ctypes, gc, sys
from pathlib import Path
from csip.ingest.pose_openvino import compile_openvino, openvino_model

class Stack(ctypes.Structure):
    _fields_ = [("place", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]

def place():
    stack = Stack()
    assert ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack)) == 0
    return stack.place

with openvino_model(Path(sys.argv[1]), (64, 64)) as path:
    models = [compile_openvino(path, (64, 64), batch=1) for _ in range(2)]
before = place()
for _ in range(2):
    del models[0]
    gc.collect()
    print(before == place())
"""
    done = subprocess.run([sys.executable, "-c", script, str(WEIGHTS)], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-2:] == ["True", "True"]
