import ast
import gc
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from csip import source
from csip.source import source_digest

ROOT = Path(__file__).resolve().parents[2]

# Modules of our own in a copy of the package: alpha reaches beta, and gamma from inside a function; delta is alone.
ALPHA = '''"""Alpha."""
from csip.beta import double
from csip.config import ClipConfig

def quadruple(x):
    """Four times."""
    from csip import gamma
    return double(double(x)) + gamma.ZERO + ClipConfig().frames
'''
BETA = '''"""Beta."""

def double(x):
    """Twice."""
    return 2 * x
'''
GAMMA = "ZERO = 0\n"
DELTA = "ONE = 1\n"
# Each change to the copy, and whether alpha's digest must change with it.
CHANGES = {
    "a comment in a reachable module": ("beta.py", BETA.replace("return", "# why\n    return"), False),
    "a docstring of a reachable function": ("beta.py", BETA.replace("Twice.", "Two times."), False),
    "a docstring of its own": ("alpha.py", ALPHA.replace("Four times.", "Twice twice."), False),
    "layout": ("beta.py", BETA.replace("2 * x", "(2   *   x)"), False),
    "a module that is not reached": ("delta.py", "ONE = 2\n", False),
    "the config, whose values are inputs": ("config.py", None, False),
    "a section of it": ("sections/clip.py", None, False),
    "a reachable helper": ("beta.py", BETA.replace("2 * x", "x + x"), True),
    "a number in a module reached inside a function": ("gamma.py", "ZERO = 1\n", True),
    "its own code": ("alpha.py", ALPHA.replace("double(double(x))", "double(x)"), True),
    "what it imports": ("alpha.py", ALPHA + "\nfrom csip.delta import ONE\n", True),
    "a string that is no docstring": ("beta.py", BETA + '\nNAME = "beta"\n', True),
}
DIGESTS = """
import json, sys
from pathlib import Path
import csip
from csip import source
here = Path(csip.__file__).parent
def digest():
    source._parse_module.cache_clear()
    return source.source_digest("csip.alpha")
out = {"folder": str(here), "before": digest(), "commit": source.git_commit()}
for what, (file, text, _) in json.load(sys.stdin).items():
    old = (here / file).read_text()
    (here / file).write_text(old + "\\nUNUSED = 1\\n" if text is None else text)
    out[what] = digest()
    (here / file).write_text(old)
out["after"] = digest()
print(json.dumps(out))
"""


@pytest.fixture(scope="module")
def digests(tmp_path_factory):
    """Digests of alpha under each change, made in a copy of the package: one process for all of them."""
    folder = tmp_path_factory.mktemp("copy")
    for package in ("csip", "storage_schemas"):
        ignored = shutil.ignore_patterns("__pycache__", "assets")
        shutil.copytree(ROOT / package, folder / package, ignore=ignored)
    for name, text in (("alpha", ALPHA), ("beta", BETA), ("gamma", GAMMA), ("delta", DELTA)):
        (folder / "csip" / f"{name}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", DIGESTS],
        input=json.dumps(CHANGES),
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    out = json.loads(done.stdout)
    assert out["folder"] == str(folder / "csip")
    return out


@pytest.mark.parametrize("what", CHANGES)
def test_a_source_digest_changes_with_the_code_that_is_reached_and_with_nothing_else(digests, what):
    assert (digests[what] != digests["before"]) == CHANGES[what][2]


def test_a_source_digest_comes_back_when_the_code_does(digests):
    assert digests["after"] == digests["before"]


def test_code_outside_a_checkout_has_no_commit(digests):
    assert digests["commit"] == ""


def test_the_schemas_belong_to_the_source_of_what_writes_tables():
    # `tables` reaches every schema; `errors` reaches nothing.
    assert source_digest("csip.tables") != source_digest("csip.errors")
    assert len(source_digest("csip.tables")) == 64


def test_a_module_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"found no source of module 'csip\.nothing'"):
        source_digest("csip.nothing")


@contextmanager
def parsing_between():
    """Let something else be parsed, deeper in the stack, whenever garbage is collected, which is often."""
    thresholds, found = gc.get_threshold(), []

    def parse(phase, info, depth=15):
        if depth:
            parse(phase, info, depth - 1)
        elif phase == "start":
            found.append(ast.parse("y = [1, (2, 3)]"))

    gc.callbacks.append(parse)
    gc.set_threshold(50)
    try:
        yield found
    finally:
        gc.callbacks.remove(parse)
        gc.set_threshold(*thresholds)


def test_source_is_digested_while_others_parse():
    # Without care, Python 3.11.7 ends this with "AST constructor recursion depth mismatch" every time.
    before = source_digest("csip.tables")
    source._parse_module.cache_clear()
    with parsing_between() as others:
        assert source_digest("csip.tables") == before
    assert others
    assert gc.isenabled()
