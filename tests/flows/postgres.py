"""A PostgreSQL of Debian's package for a test: its own data folder and port, gone afterwards."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_SECONDS = 60


def find_binaries():
    """The folder of the newest `initdb` and `postgres`: Debian keeps them off the PATH.

    Without them, a person's tests are skipped; the project's CI, which installs them, fails.
    """
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    initdb = str(found[-1]) if found else shutil.which("initdb")
    if initdb is None:
        told = "PostgreSQL's initdb: found neither in /usr/lib/postgresql/*/bin nor on the PATH."
        if os.environ.get("CSIP_CI"):
            pytest.fail(f"{told} .ci/run is to install it: apt-get install postgresql.")
        pytest.skip(f"{told} Install Debian's package: apt-get install postgresql.")
    return Path(initdb).parent


@contextmanager
def running_postgres(port):
    """Give the address of an empty database, as Prefect's server takes it, until the block ends."""
    binaries = find_binaries()
    # PostgreSQL refuses to run as root, and pytest's own folders are closed to others.
    other = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    folder = Path(tempfile.mkdtemp(prefix="csip-postgres-"))
    if other:
        shutil.chown(folder, other["user"], other["group"])
    data = folder / "data"
    made = subprocess.run(
        [binaries / "initdb", "--pgdata", data, "--username", "prefect", "--auth", "trust", "--no-sync"],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
        **other,
    )
    assert made.returncode == 0, made.stdout + made.stderr
    log = folder / "log"
    settings = {"port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "", "fsync": "off"}
    words = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
    with log.open("w") as told:
        process = subprocess.Popen(
            [binaries / "postgres", "-D", data, *words], stdout=told, stderr=told, cwd=folder, **other
        )
    try:
        end = time.monotonic() + _START_SECONDS
        while "ready to accept connections" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        yield f"postgresql+asyncpg://prefect@127.0.0.1:{port}/postgres"
    finally:
        # "Fast": open connections are broken off.
        process.send_signal(signal.SIGINT)
        process.wait(60)
        shutil.rmtree(folder)
