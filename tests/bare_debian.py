"""The Dockerfile's steps and the image's entry points in a bare Debian below a folder: there is no Docker engine here.

As root, with Debian's debootstrap, 3 GB and some five minutes; `test_docker.py` does it where both are there:

    python -m tests.bare_debian /var/tmp/csip-debian

What differs from an image: Debian's own Python 3.11 in place of the one of Docker's `python`; the target `cpu` alone,
all of its stages in one root; and torch with torchvision, linked from this Python instead of downloaded.
"""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
MIRROR = "http://deb.debian.org/debian"
STAGES = ("wheel", "cpu-python", "base", "cpu")
# What torch and torchvision are made of, in 5 GB.
HEAVY = re.compile(r"(functorch|torch|torchgen|torchvision|nvidia|cuda|triton)([_.-].*)?$")


def instructions(text):
    """Stage -> its instructions, as (name, words), with continued lines joined."""
    found, stage = {}, None
    joined = re.sub(r"\\\n\s*", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in filter(None, joined.splitlines()):
        name, _, words = line.partition(" ")
        if name == "FROM":
            stage = found.setdefault(words.rpartition(" AS ")[2], [])
        elif stage is not None:
            stage.append((name, words.strip()))
    return found


class Debian:
    """A bare Debian in a folder, and what an image knows of itself: environment, folder, user."""

    def __init__(self, root):
        self.root = root
        words = ["debootstrap", "--variant=minbase", "--include=python3,python3-venv", "bookworm", root, MIRROR]
        if not root.exists():
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        # How this machine reaches a package index.
        for path in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
            (root / path[1:]).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / path[1:])
        self.environment = {"PATH": "/usr/local/python/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": "/root"}
        self.index = {name: value for name, value in os.environ.items() if re.match(r"PIP_|SSL_|REQUESTS_", name)}
        self.index.pop("PIP_FIND_LINKS", None)
        self.folder, self.user = "/", "0:0"
        # Docker's image of Python has it, and pip, on the path.
        self.run("python3 -m venv /usr/local/python")

    def run(self, command, **more):
        """Run a command as the image's user would; give what it wrote."""
        # What a container has of the machine; these mounts are this command's alone, and gone with it.
        mounts = "mount -t proc proc $0/proc; mount --rbind /sys $0/sys; mount --rbind /dev $0/dev"
        enter = f'{mounts}; exec {shutil.which("chroot")} --userspec={self.user} $0 /bin/sh -ec "$1"'
        words = ["unshare", "--mount", "/bin/sh", "-ec", enter, self.root, f"cd {self.folder}; {command}"]
        done = subprocess.run(
            words, env=self.environment | more, capture_output=True, text=True, check=False, timeout=1200
        )
        if done.returncode:
            raise RuntimeError(f"{command}: code {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
        return done.stdout

    def build(self):
        """Do what the Dockerfile says for its target `cpu`."""
        found = instructions(DOCKERFILE.read_text(encoding="utf-8"))
        for name, words in (one for stage in STAGES for one in found[stage]):
            if name == "RUN":
                self.run(self._with_torch_at_hand(words), **self.index)
            elif name == "COPY" and not words.startswith("--from"):
                self._copy(*words.split())
            elif name == "WORKDIR":
                self.folder = words
                (self.root / words[1:]).mkdir(parents=True, exist_ok=True)
            elif name == "ENV":
                pairs = dict(pair.split("=", 1) for pair in words.split())
                self.environment |= {
                    key: value.replace("$PATH", self.environment["PATH"]) for key, value in pairs.items()
                }
            elif name == "USER":
                self.user = f"{words}:{words}"
        self.environment["HOME"] = "/home/csip"

    def _copy(self, *words):
        *sources, target = words
        to = self.root / self.folder[1:] / target if not target.startswith("/") else self.root / target[1:]
        for source in (ROOT / one for one in sources):
            if source.is_dir():
                shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                to.mkdir(parents=True, exist_ok=True)
                shutil.copy(source, to)

    def _with_torch_at_hand(self, command):
        """Put links to this Python's torch where pip would install it; the step before made the environment."""
        steps = command.split("&&")
        heavy = [step for step in steps if "download.pytorch.org" in step]
        if heavy:
            self.run(steps[0])
            site = self.root / "opt/csip/lib/python3.11/site-packages"
            for path in Path(sysconfig.get_paths()["purelib"]).iterdir():
                if HEAVY.match(path.name):
                    copy = shutil.copytree if path.is_dir() else shutil.copy2
                    copy(path, site / path.name, **({"copy_function": _link} if path.is_dir() else {}))
        return "&&".join(step for step in steps[1:] if step not in heavy) if heavy else command


def _link(source, target):
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def try_image(root):
    """Build into a folder and use what is there as the image's user; give what its programs told."""
    debian = Debian(root)
    debian.build()
    shipped = "/opt/csip/lib/python3.11/site-packages/csip/assets/pedestrians.mp4"
    build = f"csip build-skeletons {shipped} --json --set detect.image_size=640 --set detect.stride=3"
    return {
        "who": debian.run("id -u").strip(),
        "help": debian.run("csip --help"),
        "worker": debian.run("csip worker --help"),
        "prefect": debian.run("prefect version"),
        "check": debian.run("pip check"),
        "built": debian.run(build),
        "store": debian.run("ls /store"),
    }


if __name__ == "__main__":
    for name, told in try_image(Path(sys.argv[1])).items():
        sys.stdout.write(f"-- {name}\n{told[-1500:]}\n")
