"""What lies in docker/: linted, and checked against what it names; no Docker engine is asked."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from prefect.utilities.templating import apply_values, find_placeholders

import csip
from csip import tables
from csip.config import RuntimeConfig
from flows.usage import make_parser
from tests import bare_debian

ROOT = Path(__file__).resolve().parents[1]
DOCKER = ROOT / "docker"
DOCKERFILE = (DOCKER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE, ALONE = (
    yaml.safe_load((DOCKER / name).read_text(encoding="utf-8")) for name in ("compose.yaml", "worker.yaml")
)
WORKERS = ("worker-cpu", "worker-gpu")
SERVICES = {
    name: ALONE["services"].get(name, {}) | {key: value for key, value in service.items() if key != "extends"}
    for name, service in COMPOSE["services"].items()
}
KUBERNETES = json.loads((DOCKER / "kubernetes-job-template.json").read_text(encoding="utf-8"))
PROPERTIES = KUBERNETES["variables"]["properties"]


def filled(words, **given):
    """Words as Compose fills them in, with these variables and the defaults of all others."""
    return [re.sub(r"\$\{(\w+):-([^}]*)\}", lambda one: str(given.get(one[1], one[2])), word) for word in words]


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
    # Another address only where somebody names one.
    assert all(re.match(r"(\$\{CSIP_LISTEN:-)?127\.0\.0\.1\}?:", port) for port in ports)


def test_no_secret_has_a_value_or_a_default():
    text = "".join((DOCKER / name).read_text(encoding="utf-8") for name in ("compose.yaml", "worker.yaml"))
    for name in ("CSIP_DATABASE_PASSWORD", "CSIP_AUTH", "CSIP_VIDEOS"):
        assert re.search(rf"\$\{{{name}:\?", text), f"{name} is not asked for"
        assert not re.search(rf"\$\{{{name}:?-", text)
    given = [line for line in (DOCKER / "example.env").read_text().splitlines() if re.match(r"[A-Z_]+=.", line)]
    assert given == ["CSIP_RECIPE=video"]
    assert "docker/.env" in (ROOT / ".gitignore").read_text().splitlines()


def test_what_is_waited_for_and_mounted_is_there():
    for service in SERVICES.values():
        assert set(service.get("depends_on", {})) <= set(SERVICES)
        for volume in service.get("volumes", []):
            source = re.sub(r"\$\{\w+:-(\w+)\}", r"\1", volume).partition(":")[0]
            assert source in COMPOSE["volumes"] or source.startswith("${CSIP_VIDEOS")
        if build := service.get("build"):
            assert (DOCKER / build["context"] / build["dockerfile"]).is_file()
            assert f"AS {build['target']}\n" in DOCKERFILE
            assert service["image"] == f"csip:{build['target']}"


def test_the_deployments_are_made_by_words_that_csip_understands():
    words = SERVICES["deploy"]["command"].split()
    args = make_parser().parse_args(filled(words))
    assert (args.command, args.source, args.store, args.pool) == ("deploy", ["/videos"], "/store", "csip")
    args = make_parser().parse_args(filled(words, CSIP_STORE_ADDRESS="s3://cameras", CSIP_SOURCE="/videos/all.csv"))
    assert (args.source, args.store) == (["/videos/all.csv"], "s3://cameras")
    for name in WORKERS:
        pulls = make_parser().parse_args(filled(SERVICES[name]["command"]))
        assert (pulls.command, pulls.pool, pulls.with_healthcheck) == ("worker", "csip", True)


def test_no_variable_that_users_export_for_the_command_line_reaches_compose():
    # README has them export a folder of this machine as CSIP_STORE, and the shell comes before .env.
    texts = [(DOCKER / name).read_text(encoding="utf-8") for name in ("compose.yaml", "worker.yaml")]
    used = {name for text in texts for name in re.findall(r"\$\{(\w+)", text)}
    assert used & {"CSIP_STORE", "CSIP_CACHE", "PREFECT_API_URL", "PREFECT_API_AUTH_STRING"} == set()
    assert "CSIP_STORE_ADDRESS" in used


def test_a_worker_takes_as_many_runs_as_it_has_gpus_whose_locks_outlive_its_container():
    for gpus in (1, 4):
        given = {} if gpus == 1 else {"CSIP_GPUS": gpus}
        for name in WORKERS:
            assert make_parser().parse_args(filled(SERVICES[name]["command"], **given)).limit == gpus
            # All containers of a machine lock by its boot, on a volume of it (`flows.devices`); messages that name a
            # machine name its container.
            assert "hostname" not in SERVICES[name]
            assert "cache:/cache" in SERVICES[name]["volumes"]
        (device,) = SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"]
        assert filled([device["count"]], **given) == [str(gpus)]


def test_docker_waits_longer_than_a_training_may_take_to_save():
    for name in WORKERS:
        (grace,) = filled([SERVICES[name]["stop_grace_period"]])
        assert float(grace.removesuffix("s")) > RuntimeConfig().stop_seconds + 15
        assert filled([SERVICES[name]["stop_grace_period"]], CSIP_STOP_GRACE="150s") == ["150s"]
        assert SERVICES[name]["init"] is True


def test_no_log_grows_until_the_disk_is_full():
    for name, service in SERVICES.items():
        options = service["logging"]["options"]
        assert (options["max-size"], int(options["max-file"])) == ("20m", 5), name


def test_who_runs_in_a_container_is_named_where_folders_of_the_host_are():
    user = re.search(r"useradd --uid (\d+)", DOCKERFILE)[1]
    for path in (DOCKER / "example.env", DOCKER / "worker.yaml", ROOT / "README.md"):
        assert f"uid {user}" in path.read_text(encoding="utf-8"), path


def pins():
    """Name -> version of everything that the images are made of, and the lines that are no pins."""
    lines = (DOCKER / "constraints.txt").read_text(encoding="utf-8").splitlines()
    told = [line for line in lines if line and not line.startswith("#")]
    exact = dict(line.split("==") for line in told if re.fullmatch(r"[\w.-]+==[\w.+!]+", line))
    return {canonicalize_name(name): version for name, version in exact.items()}, told


def test_the_images_versions_are_those_that_pyproject_allows():
    found, told = pins()
    assert len(found) == len(told), "a line that names no one version, or a name twice"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [one for name, some in project["optional-dependencies"].items() if name != "test" for one in some]
    for asked in map(Requirement, [*project["dependencies"], *extras, "asyncpg", "onnxruntime-gpu>=1.20"]):
        version = found.get(canonicalize_name(asked.name))
        assert version, f"{asked.name} is not pinned"
        assert asked.specifier.contains(version), f"{asked} does not allow {version}"
    # One pin for the builds of both targets.
    assert "+" not in found["torch"] + found["torchvision"]


def test_nothing_is_installed_in_the_images_but_by_the_pins():
    installs = re.findall(r"pip install (?:.|\\\n)*", DOCKERFILE)
    assert len(installs) == 3
    assert all("--constraint /wheels/constraints.txt" in one for one in installs)


@pytest.mark.parametrize("name", ["compose.yaml", "worker.yaml"])
def test_compose_files_are_as_composes_own_schema_has_them(name, tmp_path):
    def look(path):
        program = Path(sys.executable).with_name("check-jsonschema")
        words = [program, "--builtin-schema", "vendor.compose-spec", path]
        return subprocess.run(words, capture_output=True, text=True, check=False)

    done = look(DOCKER / name)
    assert done.returncode == 0, done.stdout
    wrong = tmp_path / name
    wrong.write_text((DOCKER / name).read_text(encoding="utf-8").replace("    image:", "    imago:", 1))
    assert "'imago' was unexpected" in look(wrong).stdout


def test_a_further_machine_needs_the_workers_file_alone():
    assert set(ALONE["services"]) == set(WORKERS)
    for name in WORKERS:
        assert COMPOSE["services"][name]["extends"] == {"file": "worker.yaml", "service": name}
        assert "depends_on" not in ALONE["services"][name]
        environment = ALONE["services"][name]["environment"]
        assert environment["PREFECT_API_URL"] == "${CSIP_API_URL:-http://server:4200/api}"
        # Passed on as they are, for an s3:// store.
        passed = {key for key, value in environment.items() if value is None}
        assert set(re.findall(r"\bAWS_\w+[A-Z]\b", f"{tables.__doc__} {(ROOT / 'README.md').read_text()}")) <= passed
    # Nothing of the server is asked for.
    text = (DOCKER / "worker.yaml").read_text(encoding="utf-8")
    assert set(re.findall(r"\$\{(\w+):\?", text)) == {"CSIP_AUTH", "CSIP_VIDEOS"}
    told = (DOCKER / "example.env").read_text(encoding="utf-8")
    used = set(re.findall(r"\$\{(\w+)", text + (DOCKER / "compose.yaml").read_text(encoding="utf-8")))
    assert all(name in told for name in used)


def test_a_worker_sees_what_the_deployments_name():
    for name in WORKERS:
        mounted = {re.search(r":(/\w+)(:ro)?$", volume)[1] for volume in SERVICES[name]["volumes"]}
        assert {"/store", "/cache", "/videos"} <= mounted
    assert "driver" in SERVICES["worker-gpu"]["deploy"]["resources"]["reservations"]["devices"][0]


# ------------------------------------------------------------------------------------------------------- Kubernetes


def placeholders(value):
    """Names of all variables that a template uses."""
    return {found.name for found in find_placeholders(value)}


def manifest(**values):
    """The manifest of a flow run's job, as Prefect fills it in."""
    given = {name: field["default"] for name, field in PROPERTIES.items() if "default" in field}
    filled = apply_values(KUBERNETES["job_configuration"], given | values, remove_notset=False)
    return filled["job_manifest"]


def test_every_variable_of_the_kubernetes_template_is_declared_used_and_described():
    assert placeholders(KUBERNETES["job_configuration"]) == set(PROPERTIES)
    assert [name for name, field in PROPERTIES.items() if not field["description"]] == []


def test_a_kubernetes_job_runs_as_nobody_on_a_gpu_with_the_volumes_of_the_image():
    pod = manifest()["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["image"] == "csip:gpu"
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert pod["securityContext"]["runAsNonRoot"]
    user = int(re.search(r"useradd --uid (\d+)", DOCKERFILE)[1])
    assert {pod["securityContext"][name] for name in ("runAsUser", "runAsGroup", "fsGroup")} == {user}
    assert not container["securityContext"]["allowPrivilegeEscalation"]
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: claims[mount["name"]] for mount in container["volumeMounts"]}
    assert mounted == {"/store": "csip-store", "/cache": "csip-cache", "/videos": "csip-videos", "/dev/shm": None}
    environment = {one["name"]: one["value"] for one in container["env"]}
    for name, value in environment.items():
        assert re.search(rf"^(ENV |    ){name}={value}\b", DOCKERFILE, re.MULTILINE)
    # The image's own entry point is `csip`; what runs a flow is Prefect's, and gets the signals.
    assert container["command"] == ["env"]
    assert pod["terminationGracePeriodSeconds"] > RuntimeConfig().stop_seconds + 15
    assert manifest(gpus=2)["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2


def test_the_readmes_kubernetes_pool_is_its_own_and_what_is_deployed_to():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (pool,) = re.findall(r"^prefect work-pool create (\S+) --type kubernetes", readme, re.MULTILINE)
    # `csip deploy` makes another one by that name, of processes.
    assert pool != make_parser().parse_args(["deploy"]).pool
    (words,) = re.findall(rf"^csip (deploy .*--pool {pool})$", readme, re.MULTILINE)
    assert make_parser().parse_args(words.split()).pool == pool
    assert f"prefect worker start --pool {pool}\n" in readme


@pytest.mark.slow
def test_the_wheel_of_the_first_stage_holds_all_that_runs(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for name in re.findall(r"^!(.+)$", (DOCKER / "Dockerfile.dockerignore").read_text(), re.MULTILINE):
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (source / name).parent.mkdir(exist_ok=True)
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


@pytest.mark.slow
@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("debootstrap"), reason="wants root and Debian's package debootstrap"
)
def test_the_images_steps_and_programs_run_in_a_bare_debian(tmp_path):
    told = bare_debian.try_image(tmp_path / "debian")
    assert told["who"] == re.search(r"useradd --uid (\d+)", DOCKERFILE)[1]
    assert "build-skeletons" in told["help"]
    assert "--with-healthcheck" in told["worker"]
    assert pins()[0]["prefect"] in told["prefect"]
    assert "No broken requirements found." in told["check"]
    assert json.loads(told["built"])["snapshot"].startswith("video-")
    assert "crops.lance" in told["store"]
