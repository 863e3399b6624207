"""The commands that look after a store: `csip snapshots`, `verify`, `diff`, `gc` and `forget`."""

from __future__ import annotations

import contextlib
import dataclasses
import shlex
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

from rich.text import Text

from csip import tables
from csip.maintenance.collect import Collected, collect
from csip.maintenance.diff import MOST_NAMES, TableDiff, diff
from csip.maintenance.forget import Plan, Selector, finish, forget, forgotten_on, look_up
from csip.maintenance.snapshots import list_snapshots
from csip.maintenance.verify import verify
from csip.plain import to_plain
from flows import terminal

_ABSENT = "-"


def snapshots(store: str, *, as_json: bool) -> None:
    """List what a store publishes."""
    listed, size = list_snapshots(store)
    if as_json:
        terminal.show_json({"store": store, "snapshots": to_plain(listed), "bytes": size})
        return
    for one in listed:
        protocols = ", ".join(f"{name} ({n} splits)" if n > 1 else name for name, n in one.protocols.items())
        plain = {k.replace("_", " "): v for k, v in one.counts.items() if not isinstance(v, Mapping | list)}
        shown: list[tuple[str, object]] = [
            ("published", one.created),
            ("digest", one.digest[:12]),
            ("protocols", protocols or "none"),
            ("table versions", ", ".join(f"{name}@{version}" for name, version in one.tables.items())),
            ("data files", f"{_size(one.bytes)}, of which {_size(one.own_bytes)} in no other snapshot"),
            *((name, plain[name]) for name in ("videos", "tracklets", "crops", "frames") if name in plain),
            *((name, plain[name]) for name in ("train people", "test people") if name in plain),
            *([("cannot be read", one.problem)] if one.problem else []),
        ]
        terminal.OUT.print(terminal.facts(one.name, shown))
    if len(listed) > 1:
        terminal.OUT.print(Text(f"{len(listed)} snapshots, which share data files: {_size(size)} together."))
    if not listed:
        terminal.OUT.print(Text(f"No snapshot is published in {store}. Make one with `csip build-skeletons`."))


def check_store(store: str, names: Sequence[str], *, deep: bool, as_json: bool) -> int:
    """Look a store over; 1 where there is a fault, else 0."""
    found = verify(store, names, deep=deep)
    faults = [one for one in found if one.kind == "fault"]
    if as_json:
        terminal.show_json({"store": store, "faults": len(faults), "findings": to_plain(found)})
        return int(bool(faults))
    for kind, title in (("fault", "Faults"), ("leftover", "Leftovers, which do no harm; see `csip gc`")):
        rows = [(" ".join(filter(None, (one.snapshot, one.where))), one.text) for one in found if one.kind == kind]
        if rows:
            terminal.OUT.print(terminal.facts(f"{title} ({len(rows)})", rows))
    if not faults:
        told = f"snapshots {', '.join(names)}" if names else "all snapshots, runs and files"
        terminal.OUT.print(Text(f"Nothing wrong: {told} of {store}."))
    return int(bool(faults))


def compare(a: str, b: str, store: str, *, as_json: bool) -> None:
    """Say what tells two snapshots apart."""
    found = diff(store, a, b)
    if as_json:
        terminal.show_json({"store": store, "a": a, "b": b, **to_plain(found)})
        return
    for title, pairs in (("Settings", found.settings), ("Counts", found.counts), ("Parts", found.roles)):
        if pairs:
            rows = [(name, f"{_value(x)} -> {_value(y)}") for name, (x, y) in pairs.items()]
            terminal.OUT.print(terminal.facts(f"{title} that differ ({a} -> {b})", rows))
    unlike = {name: t for name, t in found.tables.items() if t.only_a or t.only_b or t.changed}
    for name, table in unlike.items():
        terminal.OUT.print(terminal.facts(f"Rows of {name}", _rows(table, a, b)))
    alike = [f"{name} ({t.rows[0]} rows)" for name, t in found.tables.items() if name not in unlike]
    if alike:
        terminal.OUT.print(Text(f"The same in both: {', '.join(alike)}."))


def _rows(table: TableDiff, a: str, b: str) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("rows", f"{table.rows[0]} -> {table.rows[1]}")]
    heads = {"only_a": f"only in {a}", "only_b": f"only in {b}", "changed": "changed"}
    for kind, head in heads.items():
        count, names = getattr(table, kind), table.names[kind]
        more = f" and {count - MOST_NAMES} more" if count > MOST_NAMES else ""
        rows.append((head, f"{count}: {', '.join(names)}{more}" if count else 0))
    return [*rows, ("compared", ", ".join(table.compared))]


def _value(value: Any) -> str:
    return _ABSENT if value is None else terminal.brief(value) if isinstance(value, str) else str(value)


def clean(
    store: str,
    drop: Sequence[str],
    *,
    dry_run: bool,
    force: bool,
    older_than: timedelta,
    detections: bool,
    as_json: bool,
) -> None:
    """Give back what nothing names."""
    with contextlib.nullcontext() if dry_run else tables.at_work(store):
        done = collect(store, dry_run=dry_run, drop=drop, force=force, older_than=older_than, detections=detections)
    if as_json:
        terminal.show_json({"store": store, "dry_run": dry_run, **to_plain(done)})
        return
    rows = [*_work(done), ("free", _size(done.bytes))]
    title = "What `csip gc` would do; nothing was changed" if dry_run else "Cleaned up"
    terminal.OUT.print(terminal.facts(title, rows))
    for sentence in done.left:
        terminal.OUT.print(Text(f"Left: {sentence}", style="dim"))
    if done.dropped:
        days = older_than / timedelta(days=1)
        words = shlex.join(["csip", "gc", "--store", store, *(["--older-than", f"{days:g}"] if days != 7 else [])])
        after = f", {days:g} days from now or later" if days else ""
        terminal.OUT.print(Text(f"What {', '.join(done.dropped)} named is free after: {words}{after}", style="dim"))


def _work(done: Collected) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("dropped", name) for name in done.dropped]
    rows += [(name, "moved to newer versions, with the same rows") for name in done.moved]
    if done.extractions:
        rows.append(("extractions", f"{done.extractions} given back, which a build does again"))
    for name, work in done.tables.items():
        known = dataclasses.asdict(work)
        told = [f"{known[one]} {one}" for one in ("tags", "rows", "versions", "files") if known[one]]
        if work.fragments:
            told.append(f"{work.fragments} fragments merged, of {_size(work.fragment_bytes)}")
        rows.append((name, ", ".join(told) + (f", {_size(work.bytes)}" if work.bytes else "")))
    return [*rows, *((path, _size(size)) for path, size in done.files.items())]


def forget_person(store: str, selector: Selector, *, dry_run: bool, yes: bool, as_json: bool) -> int:
    """Remove a person or a video from all of a store, after asking; 1 where the answer is no, else 0."""
    finished = [] if dry_run else finish(store)
    plan = look_up(store, selector)
    agreed = plan is not None and not dry_run
    if plan is not None:
        if not as_json:
            terminal.OUT.print(terminal.facts(_FORGET_TITLES[dry_run], _doomed(plan)))
            for note in plan.notes:
                terminal.OUT.print(Text(note, style="yellow"))
        if agreed and not yes:
            agreed = _ask("Remove all of this for good, from every snapshot? Type yes: ")
        if agreed:
            forget(store, selector, plan)
    if as_json:
        terminal.show_json(
            {
                "store": store,
                "dry_run": dry_run,
                "done": agreed,
                "finished_before": len(finished),
                "forgotten_before": forgotten_on(store, selector) if plan is None else "",
                **(_plain_doomed(plan) if plan else {}),
            }
        )
    elif plan is None:
        terminal.OUT.print(Text(f"Nothing to do: all of it was forgotten {forgotten_on(store, selector)}."))
    elif not dry_run:
        terminal.OUT.print(Text("Forgotten." if agreed else "Nothing was changed."))
    return int(plan is not None and not dry_run and not agreed)


_FORGET_TITLES = {True: "What `csip forget` would remove; nothing was changed", False: "To be removed"}


def _ask(question: str) -> bool:
    """Ask on standard error, so that standard output stays what the command found."""
    try:
        return terminal.ERR.input(Text(question)).strip().lower() in ("y", "yes")
    except EOFError:
        return False


def _doomed(plan: Plan) -> list[tuple[str, object]]:
    rows: list[tuple[str, object]] = [("tracklets named", len(plan.tracklets))]
    rows += [(name, f"{number} rows") for name, number in plan.rows.items()]
    rows += [(name, "published again, without them") for name in plan.snapshots]
    rows += [(name, "deleted") for name in plan.files]
    return rows + [(name, "trained on this person, stays; train again") for name in plan.trained]


def _plain_doomed(plan: Plan) -> dict[str, Any]:
    told = to_plain(plan)
    return {name: told[name] for name in ("kind", "rows", "files", "trained", "notes")} | {
        "tracklets": len(plan.tracklets),
        "snapshots": sorted(plan.snapshots),
    }


def _size(count: float) -> str:
    """Write bytes so that they can be compared at a glance; the exact number is in --json."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"
