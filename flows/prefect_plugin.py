"""Lets `prefect deployment run` take our deployments by one name; a plugin of Prefect's, by its entry point.

Prefect wants FLOW/DEPLOYMENT. Ours are named as their flows are, so that one name says both. Prefect loads this as it
is imported, before its command line reads its words; with plugins off, `build-skeletons/build-skeletons` still works.
"""

from __future__ import annotations

import os
import sys
from typing import Any

from prefect.plugins import register_hook

DEPLOYMENTS = ("build-skeletons", "train-csip", "evaluate-csip")
_COMMANDS = ("deployment", "deployments")
# `python -m prefect` is "-m" while Python looks the module up.
_PROGRAMS = ("prefect", "prefect.exe", "-m")


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Spell out the name in this process's words, where they run one of our deployments."""
    sys.argv[:] = spell_out(sys.argv)


def spell_out(words: list[str]) -> list[str]:
    """Put FLOW/DEPLOYMENT in the place of a bare name of ours after `prefect deployment run`."""
    if not words or os.path.basename(words[0]) not in _PROGRAMS:
        return words
    for at in range(1, len(words) - 2):
        if words[at] in _COMMANDS and words[at + 1] == "run" and words[at + 2] in DEPLOYMENTS:
            return [*words[: at + 2], f"{words[at + 2]}/{words[at + 2]}", *words[at + 3 :]]
    return words
