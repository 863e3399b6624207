"""The commands that let others run the flows, `csip deploy` and `csip serve`, and that lend them a machine: `join`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NoReturn

from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, temporary_settings

import csip
from csip.config import RuntimeConfig
from csip.ingest.benchmarks.importing import benchmark_name
from csip.plain import to_plain
from flows import terminal
from flows.deploy import Deployed, Plan, deploy, enable_plugin
from flows.progress import server_needed
from flows.serve import HOST, password, serve
from flows.together import join

SHIPPED = Path(csip.__file__).parent / "assets" / "pedestrians.mp4"


def deploy_flows(plan: Plan, *, plugin: bool, as_json: bool) -> None:
    """Make the deployments on the server of the active profile, and say how they are run."""
    done = _deploy(plan)
    profile = enable_plugin() if plugin else None
    if as_json:
        terminal.show_json(to_plain(done) | {"profile": str(profile or "")})
    else:
        _show(done, profile)


def serve_flows(plan: Plan, *, plugin: bool, port: int, at_once: int) -> None:
    """Run server and worker on this machine, deploy to them, and say where the UI is."""

    def ready(url: str) -> None:
        profile = enable_plugin() if plugin else None
        known = {PREFECT_API_AUTH_STRING: password()} if password() else {}
        with temporary_settings({PREFECT_API_URL: url, **known}):
            _show(_deploy(plan), profile)
        rows = [("UI", f"http://{HOST}:{port}"), ("elsewhere", f"export PREFECT_API_URL={url}")]
        terminal.OUT.print(terminal.facts("Serving; Ctrl-C ends it", [*rows, ("flow runs at once", at_once)]))

    serve(port, plan.pool, at_once, plan.experiment.runtime.stop_seconds, ready)


def join_trainings(runtime: RuntimeConfig, node: int) -> NoReturn:
    """Lend this machine to the trainings of a flow that runs on another one, until interrupted."""

    def tell(text: str) -> None:
        terminal.ERR.print(text, markup=False, highlight=False)

    join(runtime, node, tell)


def _deploy(plan: Plan) -> Deployed:
    """Deploy, the shipped video where no source is named.

    Raises:
        ServerError: the server cannot be used.
    """
    with server_needed():
        return deploy(replace(plan, sources=tuple(map(_absolute, plan.sources)) or (str(SHIPPED),)))


def _absolute(source: str) -> str:
    """Give a source as a worker finds it, which runs elsewhere; of a benchmark, its folder."""
    kind = benchmark_name(source)
    if not kind:
        return str(Path(source).absolute())
    folder = source.removeprefix(f"{kind}:")
    return f"{kind}:{Path(folder).absolute()}" if folder else source


def _show(done: Deployed, profile: Path | None) -> None:
    rows: list[tuple[str, object]] = [(name, f"prefect deployment run {name}") for name in done.deployments]
    rows.append(
        ("server", PREFECT_API_URL.value() or "none runs: start `prefect server start`, whose database this is")
    )
    rows.append(("sources", ", ".join(done.parameters["build-skeletons"]["sources"])))
    rows.append(("store", done.parameters["build-skeletons"]["store"]))
    rows.append(("workers", f"csip worker --pool {done.pool} --limit 1"))
    rows += [("automation", name) for name in done.automations]
    if profile is not None:
        rows.append(("profile", f"{profile}: loads the plugin by which one name is enough"))
    terminal.OUT.print(terminal.facts("Deployed", rows))
