"""The commands that only look, and run neither a flow nor a network: `csip check`, `config` and `lineage`."""

from __future__ import annotations

from collections.abc import Mapping

from rich.text import Text

from csip.config import Experiment
from csip.ingest.check import check_sources
from csip.lineage import History
from csip.origins import leaves
from csip.plain import to_plain
from csip.settings import spell
from flows import terminal
from flows.tree import show_lineage


def check(sources: tuple[str, ...], experiment: Experiment, *, as_json: bool) -> None:
    """Look at a source and say what is in it, or what is wrong with it."""
    counts = check_sources(sources, experiment.extract, experiment.runtime)
    if as_json:
        terminal.show_json(counts)
    else:
        rows = [(name.replace("_", " "), terminal.listing(value)) for name, value in counts.items()]
        terminal.OUT.print(terminal.facts("Nothing wrong", rows))


def show_config(experiment: Experiment, origins: Mapping[str, str], *, as_json: bool) -> None:
    """Print every number of a recipe, one a line, in the spelling that --set takes, and where it comes from."""
    if as_json:
        terminal.show_json({"values": to_plain(experiment), "sources": dict(origins)})
        return
    lines = {name: f"{name}={spell(value)}" for name, value in leaves(experiment).items()}
    width = max(map(len, lines.values()))
    for name, line in lines.items():
        terminal.OUT.print(Text.assemble(line.ljust(width), (f"  # {origins[name]}", "dim")))


def lineage(ref: str, store: str, *, as_json: bool) -> None:
    """Print what a thing was made from."""
    node = History(store).find(ref)
    if as_json:
        terminal.show_json(to_plain(node))
    else:
        show_lineage(node)
