"""Deployments of the flows: what `prefect deployment run`, the UI's forms and the workers need, made in one go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect import Flow
from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.deployments.runner import RunnerDeployment
from prefect.events.actions import RunDeployment
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.exceptions import ObjectAlreadyExists
from prefect.settings import (
    PREFECT_PLUGINS_ALLOW,
    PREFECT_PLUGINS_ENABLED,
    PREFECT_PROFILES_PATH,
    update_current_profile,
)
from prefect.types.entrypoint import EntrypointType
from prefect.utilities.callables import parameter_docstrings
from prefect.workers.process import ProcessWorker

from csip import config
from csip.config import Experiment
from csip.plain import to_plain
from flows.build_skeletons import PUBLISHED, build_skeletons
from flows.environment import of_runs
from flows.evaluate_csip import evaluate_csip
from flows.lost import RULES, TAG, watch_over_runs
from flows.train_csip import train_csip

CHAINED = "csip: train-csip after build-skeletons"
_PLUGIN = "csip"
_AS_GOOD_AS_NO_BOUND = 2**53
_EVALUATED = ("data", "embed", "evaluate", "skeleton", "runtime")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be deployed.

    Attributes:
        experiment: the recipe that runs have where they are given no other.
        sources: what `build-skeletons` builds from, absolute.
        store: the store of all of them, absolute.
        camera: the one camera that took the sources; empty: every file is a camera of its own.
        pool: the work pool's name; one that is there already is left as it is.
        chained: whether a build that publishes a snapshot starts a training.
    """

    experiment: Experiment
    sources: tuple[str, ...]
    store: str
    camera: str
    pool: str
    chained: bool


@dataclass(frozen=True, slots=True)
class Deployed:
    """What there is to run now.

    Attributes:
        pool: the work pool that workers pull from.
        deployments: their names.
        automations: their names.
        parameters: deployment -> what a run of it has where it is given nothing else.
    """

    pool: str
    deployments: tuple[str, ...]
    automations: tuple[str, ...]
    parameters: Mapping[str, Mapping[str, Any]]


def deploy(plan: Plan) -> Deployed:
    """Make or renew the work pool, deployments and automations on the Prefect server of the active profile."""
    experiment, store, pool = plan.experiment, plan.store, plan.pool
    _make_pool(pool)
    runtime = to_plain(experiment.runtime)
    sections = {name: to_plain(getattr(experiment, name)) for name in _EVALUATED}
    flows: list[tuple[Flow[Any, Any], dict[str, Any]]] = [
        (
            build_skeletons,
            {
                **{"sources": list(plan.sources), "store": store, "camera": plan.camera},
                **{"config": to_plain(experiment.extract), "runtime": runtime},
            },
        ),
        (train_csip, {"snapshot": "", "store": store, "experiment": to_plain(experiment)}),
        (evaluate_csip, {"checkpoint": "", "snapshot": "", "store": store, **sections}),
    ]
    ids = {flow.name: _deploy(flow, parameters, pool) for flow, parameters in flows}
    automations = watch_over_runs()
    if plan.chained:
        automations.append(_train_after_builds(ids[train_csip.name]))
    _renew(automations)
    names = tuple(automation.name for automation in automations)
    return Deployed(pool, tuple(ids), names, {flow.name: parameters for flow, parameters in flows})


def enable_plugin() -> Path:
    """Let the active Prefect profile load `flows.prefect_plugin`, wherever `prefect` is called; return its file."""
    allowed = set(PREFECT_PLUGINS_ALLOW.value() or ()) | {_PLUGIN}
    update_current_profile({PREFECT_PLUGINS_ENABLED: True, PREFECT_PLUGINS_ALLOW: ",".join(sorted(allowed))})
    return Path(PREFECT_PROFILES_PATH.value())


def _make_pool(name: str) -> None:
    template = ProcessWorker.get_default_base_job_template()
    with get_client(sync_client=True) as client:
        try:
            client.create_work_pool(WorkPoolCreate(name=name, type="process", base_job_template=template))
        except ObjectAlreadyExists:
            return


def _deploy(flow: Flow[Any, Any], parameters: dict[str, Any], pool: str) -> Any:
    """Make a deployment that imports its flow from where CSIP is installed on the worker's machine."""
    made = RunnerDeployment.from_flow(
        flow,
        name=flow.name,
        parameters=parameters,
        work_pool_name=pool,
        tags=[TAG],
        entrypoint_type=EntrypointType.MODULE_PATH,
        job_variables={"env": of_runs()},
    )
    schema = made._parameter_openapi_schema
    for name, definition in schema.definitions.items():
        _describe(definition, getattr(config, name, None))
    # Prefect gave it an empty list of schedules, and would delete what people have scheduled since.
    made.model_fields_set.discard("schedules")
    return made.apply()


def _describe(definition: dict[str, Any], section: Any) -> None:
    """Move what a section's docstring says of each field to that field, where the UI's form shows it."""
    text = getattr(section, "__doc__", None) or ""
    told = parameter_docstrings(text.replace("Attributes:", "Args:"))
    for name, property_ in definition.get("properties", {}).items():
        if name in told:
            property_["description"] = " ".join(told[name].split()) + _range(property_)
    definition["description"] = text.partition("Attributes:")[0].strip()
    # Prefect's newer UI heads a section by this.
    definition["title"] = definition.get("title", "").removesuffix("Config")
    # Whatever a run leaves out of a section, the deployment has (`flows.parameters`).
    definition.pop("required", None)


def _range(property_: dict[str, Any]) -> str:
    """Say what a number may be: not every UI shows what the schema says."""
    low, high = property_.get("minimum"), property_.get("maximum")
    if high is None or high >= _AS_GOOD_AS_NO_BOUND:
        return "" if low is None else f" [from {low:g}]"
    text = f"{low:.16g} to {high:.16g}"
    # Zero, where it has a meaning of its own (`csip.sections`).
    if "not" in property_:
        text = f"{low:.16g}, or {property_['not']['exclusiveMaximum']:.16g} to {high:.16g}"
    return f" [{text}]"


def _train_after_builds(training: Any) -> Automation:
    """Make a rule: a published snapshot is trained on."""
    jinja = "{{{{ event.payload.{} }}}}"
    return Automation(
        name=CHAINED,
        description="A build that published a snapshot starts a training on it.",
        trigger=EventTrigger(
            match={"prefect.resource.id": "csip.snapshot.*"},
            expect={PUBLISHED},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[
            RunDeployment(
                source="selected",
                job_variables=None,
                deployment_id=training,
                parameters={
                    name: {"__prefect_kind": "jinja", "template": jinja.format(name)} for name in ("snapshot", "store")
                },
            )
        ],
    )


def _is_same(there: AutomationCore, automation: AutomationCore) -> bool:
    """Tell whether a rule is as it should be: one that is written again forgets which runs it waits for."""
    return all(getattr(there, name) == getattr(automation, name) for name in ("enabled", "trigger", "actions"))


def _renew(automations: list[Automation]) -> None:
    """Create our automations, change those that are there already, and remove one that is not asked for any more."""
    with get_client(sync_client=True) as client:
        there = {name: client.read_automations_by_name(name) for name in (*RULES, CHAINED)}
        for automation in automations:
            found = there.pop(automation.name)
            if not found:
                automation.create()
            elif not _is_same(found[0], automation):
                automation.id = found[0].id
                automation.update()
        for one in (one for found in there.values() for one in found):
            client.delete_automation(one.id)
