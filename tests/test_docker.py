"""What lies in docker/: linted, and checked against what it names; no Docker engine is asked."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

import csip
from flows.__main__ import make_parser

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))
SERVICES = COMPOSE["services"]
WORKERS = ("worker-cpu", "worker-gpu")


def test_the_dockerfile_has_nothing_that_a_linter_finds():
    hadolint = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([hadolint, DOCKER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


def test_both_targets_are_there_and_neither_runs_as_root():
    stages = re.split(r"^FROM ", DOCKERFILE, flags=re.MULTILINE)
    for target in ("cpu", "gpu"):
        (stage,) = [stage for stage in stages if stage.splitlines()[0].endswith(f"AS {target}")]
        assert re.search(r"^USER 10001$", stage, re.MULTILINE)
        assert 'ENTRYPOINT ["csip"]' in stage


def test_what_the_image_is_made_of_is_what_the_builder_is_sent():
    copied = set(re.findall(r"^COPY (?!--from)(.+) \S+$", DOCKERFILE, re.MULTILINE))
    names = {name for line in copied for name in line.split()}
    sent = {line[1:] for line in (DOCKER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    assert names == sent
    assert all((ROOT / name).exists() for name in names)


def test_every_service_says_when_it_is_well_and_is_started_again():
    for name, service in SERVICES.items():
        if name == "deploy":
            assert service["restart"] == "no"
        else:
            assert service["restart"] == "unless-stopped"
            assert service["healthcheck"]["test"]


def test_ports_are_bound_to_this_machine_alone():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_no_secret_has_a_value_or_a_default():
    text = (DOCKER / "compose.yaml").read_text(encoding="utf-8")
    for name in ("CSIP_DATABASE_PASSWORD", "CSIP_AUTH", "CSIP_VIDEOS"):
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} is not asked for"
        assert not re.search(rf"\$\{{{name}:?-", text)
    filled = [line for line in (DOCKER / "example.env").read_text().splitlines() if re.match(r"[A-Z_]+=.", line)]
    assert filled == ["CSIP_RECIPE=video"]
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_is_waited_for_and_mounted_is_there():
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for volume in service.get("volumes", []):
            source = volume.partition(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith(("/", ".", "$"))
        if build := service.get("build"):
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
            assert f"AS {build['target']}\n" in DOCKERFILE
            assert service["image"] == f"csip:{build['target']}"


def test_the_deployments_are_made_by_words_that_csip_understands():
    words = [word.replace("${CSIP_RECIPE:-video}", "video") for word in SERVICES["deploy"]["command"]]
    args = make_parser().parse_args(words)
    assert (args.command, args.store, args.pool) == ("deploy", "/store", "csip")
    for name in WORKERS:
        assert args.pool in SERVICES[name]["entrypoint"]


def test_a_worker_sees_what_the_deployments_name():
    for name in WORKERS:
        mounted = {volume.rpartition("}")[2].split(":")[1] for volume in SERVICES[name]["volumes"]}
        assert {"/store", "/cache", "/videos"} <= mounted
    assert "driver" in SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]


@pytest.mark.slow
def test_the_wheel_of_the_first_stage_holds_all_that_runs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", tmp_path, source]
    subprocess.run(list(map(str, command)), check=True, capture_output=True, timeout=600)
    (wheel,) = tmp_path.glob("csip-*.whl")
    with zipfile.ZipFile(wheel) as packed:
        names = set(packed.namelist())
        (entries,) = [name for name in names if name.endswith("entry_points.txt")]
        told = packed.read(entries).decode()
    assert "csip = flows.__main__:main" in told
    assert "[prefect.plugins]\ncsip = flows.prefect_plugin" in told
    for package in ("csip", "flows", "storage_schemas"):
        files = {str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*") if path.is_file()}
        assert {name for name in files if "__pycache__" not in name} - names == set()
    assert f"{Path(csip.__file__).parent.name}/assets/yolo11n-pose.pt" in names
