"""What the flows' parameters may hold, beside their types: forms show it, and the server refuses the rest."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar
from uuid import UUID

from prefect import runtime
from prefect.client.orchestration import get_client
from pydantic import BeforeValidator, Field, ValidationInfo

T = TypeVar("T")

Store = Annotated[str, Field(pattern="^(/|s3://.)")]
"""The folder of a store's tables, or its address: absolute, since a run's own folder is deleted after it."""

_Source = Annotated[str, Field(json_schema_extra={"pattern": "^(/|[a-z]+:(/|$))"})]
Sources = Annotated[tuple[_Source, ...], Field(json_schema_extra={"minItems": 1})]
"""What is built from, absolute, or a benchmark, whose folder is absolute. Only the command line gives none, where it
names a snapshot in their place, and names relative to where it runs."""

Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""A file's digest, or nothing."""


def _fill_in(given: Any, field: ValidationInfo) -> Any:
    """Put what a run of a deployment says of a section over what the deployment has there.

    Prefect replaces whole parameters: who gave one number of a recipe would get everybody's defaults for the rest.
    """
    deployment = runtime.deployment.id if isinstance(given, Mapping) else None
    return _over(_parameters(deployment).get(field.field_name or "", {}), given) if deployment else given


@functools.cache
def _parameters(deployment: str) -> Mapping[str, Any]:
    with get_client(sync_client=True) as client:
        return client.read_deployment(UUID(deployment)).parameters


def _over(old: Any, new: Any) -> Any:
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return new
    return {**old, **{name: _over(old.get(name), value) for name, value in new.items()}}


Section = Annotated[T, BeforeValidator(_fill_in)]
"""A section, or a recipe: what a run of a deployment leaves out of it is as the deployment has it."""
