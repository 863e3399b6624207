"""The source that makes a result: digests of the code that a module reaches, and the commit it runs from."""

from __future__ import annotations

import ast
import functools
import gc
import hashlib
import importlib.util
import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

_OURS = ("csip", "storage_schemas")
_NOT_SOURCE = ("csip.config",)  # its values arrive as inputs
_PARSING = threading.Lock()


def source_digest(module: str) -> str:
    """Digest the source that a module reaches by import inside this repository.

    Comments, docstrings and layout do not count; `csip.config` does not either, since its values are inputs of every
    stage. A change anywhere else that the module can reach gives another digest.
    """
    seen: dict[str, str] = {}
    todo = [module]
    while todo:
        name = todo.pop()
        if name not in seen and name not in _NOT_SOURCE:
            code, imports = _parse_module(name)
            seen[name] = code
            todo.extend(imports)
    return hashlib.sha256(json.dumps(sorted(seen.items())).encode()).hexdigest()


@functools.cache
def _parse_module(name: str) -> tuple[str, tuple[str, ...]]:
    """Give the digest of a module's code, and the modules of ours that it imports."""
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(f"source_digest: found no source of module {name!r}.")
    tree = _parse(Path(spec.origin).read_text(encoding="utf-8"))
    imports = tuple(sorted(set(_imports(tree))))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [n for n in node.body if not _is_text(n)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest(), imports


def _parse(text: str) -> ast.Module:
    """Parse source with no garbage collection in between.

    Python 3.11 (up to 3.11.7, issue 106905) counts how deep all threads are in their trees in one number. A collection
    may let another thread run, and where that one parses too, as Prefect's do by way of `inspect`, ours would end with
    a SystemError.
    """
    with _PARSING:
        collects = gc.isenabled()
        gc.disable()
        try:
            return ast.parse(text)
        finally:
            if collects:
                gc.enable()


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.partition(".")[0] in _OURS and _is_module(name):
                yield name


def _is_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


@functools.cache
def git_commit() -> str:
    """Name the commit of the checkout this code runs from, '+' behind it when files were changed; else empty."""
    here = Path(__file__).resolve().parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(here), *arguments], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if not git("ls-files", "--error-unmatch", __file__):
        return ""  # installed somewhere that happens to lie inside another project's checkout, or nowhere near one
    commit = git("rev-parse", "HEAD")
    return (
        f"{commit}+"
        if commit
        and git(
            "status", "--porcelain", "--", *(str(here.parent / name) for name in ("csip", "flows", "storage_schemas"))
        )
        else (commit or "")
    )
