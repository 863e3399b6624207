"""Ultralytics without its side effects, and where pose weights come from."""

import os
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError

import csip
from csip.errors import WeightsError
from csip.ingest import yolo
from csip.ingest.yolo import import_quietly, resolve_weights

WEIGHTS = Path(csip.__file__).parent / "assets" / "yolo11n-pose.pt"


def test_weights_come_from_the_path_then_the_cache_then_the_package(monkeypatch, tmp_path):
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert resolve_weights("yolo11n-pose.pt") == WEIGHTS
    cached = tmp_path / "cache/weights/yolo11n-pose.pt"
    cached.parent.mkdir(parents=True)
    cached.touch()
    assert resolve_weights("yolo11n-pose.pt") == cached
    (tmp_path / "yolo11n-pose.pt").touch()
    assert resolve_weights("yolo11n-pose.pt") == Path("yolo11n-pose.pt")
    assert resolve_weights(str(cached)) == cached


def test_a_path_that_is_given_is_not_looked_for_elsewhere(tmp_path):
    with pytest.raises(WeightsError, match=r"not found in .*gone/yolo11n-pose\.pt\. Copy the file"):
        resolve_weights(str(tmp_path / "gone/yolo11n-pose.pt"))


@pytest.mark.parametrize(("switch", "value"), [("YOLO_OFFLINE", "true"), ("HF_HUB_OFFLINE", "1")])
def test_offline_is_believed_at_once(monkeypatch, switch, value):
    def never(*args, **kwargs):
        raise AssertionError("the network was asked")

    monkeypatch.setattr(urllib.request, "urlopen", never)
    for name in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(switch, value)
    message = rf"not found in .*weights/other-pose\.pt; .*assets/other-pose\.pt; https://.*because {switch} is set"
    with pytest.raises(WeightsError, match=message):
        resolve_weights("other-pose.pt")


def test_a_network_that_does_not_answer_is_given_up_soon(monkeypatch):
    for switch in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setattr(yolo, "_REACH_SECONDS", 0.2)
    over, answered = threading.Event(), []

    def silent(*args, **kwargs):
        answered.append(over.wait(5))
        raise TimeoutError

    monkeypatch.setattr(urllib.request, "urlopen", silent)
    with pytest.raises(WeightsError, match=r"not reached; tried for at most 0\.2 seconds"):
        resolve_weights("other-pose.pt")
    assert not answered, "it was still waiting for an answer when it was given up"
    over.set()


def test_a_download_arrives_whole_or_not_at_all(monkeypatch, tmp_path):
    for switch in ("YOLO_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(switch, raising=False)
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    monkeypatch.setattr(yolo, "_reachable", lambda url: True)
    downloads = import_quietly("ultralytics.utils.downloads")

    def broken(file):
        Path(file).write_bytes(b"half")
        raise ConnectionError("the line went dead")

    monkeypatch.setattr(downloads, "attempt_download_asset", broken)
    with pytest.raises(WeightsError, match="the line went dead"):
        resolve_weights("other-pose.pt")
    assert list((tmp_path / "weights").iterdir()) == []
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda file: None)
    with pytest.raises(WeightsError, match="publishes no file of this name"):
        resolve_weights("other-pose.pt")
    monkeypatch.setattr(downloads, "attempt_download_asset", lambda file: Path(file).write_bytes(b"whole"))
    assert resolve_weights("other-pose.pt") == tmp_path / "weights/other-pose.pt"
    assert [path.read_bytes() for path in (tmp_path / "weights").iterdir()] == [b"whole"]


def test_the_users_settings_and_environment_are_left_alone(tmp_path):
    """In a process of its own: ultralytics reads its environment when it is first imported."""
    code = """
import os
before = dict(os.environ)
from csip.ingest.yolo import import_quietly
utils = import_quietly("ultralytics.utils")
assert dict(os.environ) == before
assert not utils.ONLINE and not utils.AUTOINSTALL
events = import_quietly("ultralytics.utils.events").Events()
assert not events.enabled
assert utils.SAFE_LOAD
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("YOLO_")}
    environment |= {"HOME": str(tmp_path / "home"), "CSIP_CACHE": str(tmp_path / "cache")}
    environment.pop("XDG_CONFIG_HOME", None)
    (tmp_path / "home").mkdir()
    root = Path(csip.__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not list((tmp_path / "home").rglob("Ultralytics"))


def test_a_module_that_another_thread_is_importing_is_waited_for(tmp_path, monkeypatch):
    (tmp_path / "slow_module.py").write_text("import time\ntime.sleep(0.5)\nready = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    thread = threading.Thread(target=import_quietly, args=("slow_module",))
    thread.start()
    while "slow_module" not in sys.modules:
        time.sleep(0.01)
    try:
        assert import_quietly("slow_module").ready
    finally:
        thread.join()
        del sys.modules["slow_module"]


def test_ultralytics_leaves_pillow_as_it_was(tmp_path):
    # Its own Image.open asks for another package where a file is no picture.
    import_quietly("ultralytics.engine.model")
    (tmp_path / "none.jpg").write_bytes(b"no picture")
    with pytest.raises(UnidentifiedImageError, match="cannot identify image file"):
        Image.open(tmp_path / "none.jpg")


def test_an_openvino_folder_is_found_by_its_name_too(monkeypatch, tmp_path):
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "cache/weights/mine_openvino_model"
    folder.mkdir(parents=True)
    assert resolve_weights("mine_openvino_model") == folder
    monkeypatch.setenv("YOLO_OFFLINE", "true")
    (tmp_path / "weights").mkdir()
    with pytest.raises(WeightsError, match="weights weights: not found in"):
        resolve_weights("weights")


class Command:
    """Unpickled, it runs a command."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_weights_file_cannot_run_code(tmp_path):
    # In a process of its own: ultralytics reads the switch when it is first imported.
    path, proof = tmp_path / "evil.pt", tmp_path / "proof"
    torch.save({"model": Command(f"touch {proof}")}, path)
    code = f"""
from csip.ingest.yolo import import_quietly
try:
    import_quietly("ultralytics.nn.tasks").load_checkpoint({str(path)!r})
except TypeError as error:
    print(error)
"""
    root = Path(csip.__file__).parent.parent
    environment = {**os.environ, "CSIP_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", code], cwd=root, env=environment, capture_output=True, text=True)
    assert "references types outside the supported Ultralytics checkpoint format" in done.stdout, done.stderr
    assert not proof.exists()
