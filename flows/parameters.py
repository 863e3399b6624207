"""What the flows' parameters may hold, beside their types: forms show it, and the server refuses the rest."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

Store = Annotated[str, Field(min_length=1)]
"""The folder of a store's tables, or its address."""

Sources = Annotated[tuple[str, ...], Field(json_schema_extra={"minItems": 1})]
"""What is built from. Only the command line gives none, where it names a snapshot in their place."""

Sha256 = Annotated[str, Field(pattern="^([0-9a-f]{64})?$")]
"""A file's digest, or nothing."""
