"""The rules a linter does not know, read off the syntax trees of everything that ships."""

import ast
import dataclasses
import fnmatch
import inspect
import re
import sys
from pathlib import Path

import pytest

from csip import config
from storage_schemas import TABLES

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("storage_schemas", "csip", "flows")
GROUND = (
    *("types", "config", "sections", "joints", "protocols", "tables", "store", "errors"),
    *(
        "device",
        "extractors",
        "files",
        "lineage",
        "origins",
        "plain",
        "references",
        "settings",
        "shares",
        "source",
        "walk",
        "weights",
        "ranks",
        "maintenance",
    ),
)
BELOW_THE_ROOMS = {"storage_schemas", "ground"}
MAY_IMPORT = {
    "storage_schemas": set(),
    "ground": {"storage_schemas"},
    "ingest": BELOW_THE_ROOMS,
    "data": BELOW_THE_ROOMS,
    "models": BELOW_THE_ROOMS,
    "evaluation": BELOW_THE_ROOMS | {"ingest", "data", "models"},
    "training": BELOW_THE_ROOMS | {"ingest", "data", "models", "evaluation"},
    "flows": BELOW_THE_ROOMS | {"ingest", "data", "models", "evaluation", "training"},
}
DOORS = {
    "prefect": ("flows/*.py",),
    "decord": ("csip/ingest/video.py",),
    # Opening and decoding in the one, reading packets in the other.
    "av": ("csip/ingest/container.py", "csip/ingest/packets.py", "csip/ingest/scan.py"),
    # One door with several leaves, all behind `import_quietly` of yolo.py: what a frame becomes, what runs the network,
    # what comes out, and the trackers.
    "ultralytics": ("csip/ingest/yolo.py", "csip/ingest/pose*.py", "csip/ingest/track.py"),
    "lance": ("csip/store/*.py",),
    "timm": ("csip/models/image_encoder.py",),
}
# A clip on its way from a crop to an embedding, in the order it comes by. The ground floor (tables, types) carries it,
# as it carries everything; building and filling the network (models/checkpoints.py) happens before any clip comes.
# LAYERS stand in for layers of torch.nn: they know nothing of clips.
FROM_CROP_TO_EMBEDDING = (
    "csip/evaluation/embed.py",
    "csip/data/sampling.py",
    "csip/data/clips.py",
    "csip/data/transforms.py",
    "csip/models/reid.py",
    "csip/models/image_encoder.py",
    "csip/models/temporal.py",
)
LAYERS = {"csip/models/mlp.py"}
TOP_LEVEL = {"pyproject.toml", "README.md", "LICENSE", "flows", "csip", "storage_schemas", "tests", "docker"}
SECTIONS = [kind for _, kind in inspect.getmembers(config, inspect.isclass) if dataclasses.is_dataclass(kind)]


def sources():
    """Every module that ships: its path from the root, and its tree."""
    paths = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    return [(path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))) for path in paths]


SOURCES = sources()


def imported(path, tree):
    """Names of all modules (and members of modules) that a file imports, inside functions too."""
    package = path.removesuffix(".py").split("/")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if "import" in called:  # import_module, __import__, and helpers around them
                yield str(node.args[0].value)


def layer(name):
    """Where a module of ours belongs; None for a module of somebody else's."""
    parts = name.split(".")
    if parts[0] in ("storage_schemas", "flows"):
        return parts[0]
    if parts[0] != "csip":
        return None
    if len(parts) == 1 or parts[1] in GROUND or parts[1] == "__init__":
        return "ground"
    return parts[1]


def module_name(path):
    return path.removesuffix(".py").replace("/", ".")


def is_flow(node):
    if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
        return False
    marks = [mark.func if isinstance(mark, ast.Call) else mark for mark in node.decorator_list]
    return any(getattr(mark, "id", getattr(mark, "attr", "")) == "flow" for mark in marks)


def test_every_module_lies_on_a_floor_of_the_house():
    floors = {path: layer(module_name(path)) for path, _ in SOURCES}
    assert {path: floor for path, floor in floors.items() if floor not in MAY_IMPORT} == {}


def test_imports_point_one_way():
    wrong = []
    for path, tree in SOURCES:
        own = layer(module_name(path))
        for name in imported(path, tree):
            other = layer(name)
            if other is not None and other != own and other not in MAY_IMPORT[own]:
                wrong.append(f"{path} ({own}) imports {name} ({other})")
    assert wrong == []


@pytest.mark.parametrize("library", DOORS)
def test_a_heavy_library_comes_in_by_its_own_door_only(library):
    users = {path for path, tree in SOURCES if any(name.split(".")[0] == library for name in imported(path, tree))}
    strangers = {path for path in users if not any(fnmatch.fnmatch(path, door) for door in DOORS[library])}
    assert users, f"nothing imports {library}: take it off the list of doors"
    assert strangers == set()


@pytest.mark.parametrize(("room", "door"), [("store", "tables"), ("sections", "config")])
def test_what_is_too_long_for_one_file_is_reached_by_its_door_only(room, door):
    # There is one door to Lance; and what came by another one than `csip.config` would be part of source digests.
    users = {p for p, tree in SOURCES if any(f"{n}.".startswith(f"csip.{room}.") for n in imported(p, tree))}
    assert {path for path in users if not path.startswith(f"csip/{room}/")} == {f"csip/{door}.py"}


def test_a_door_is_not_avoided_by_an_import_inside_a_function():
    # The reader of imports sees what it must see, else the tests above would pass by blindness.
    tree = ast.parse("def f():\n    import av.video\n    from . import pose\n    import_module('lance.vector')")
    assert sorted(imported("csip/ingest/x.py", tree)) == ["av.video", "csip.ingest.pose", "lance.vector"]


def test_a_clip_passes_seven_files_at_most_from_crop_to_embedding(tiny, tiny_snapshot, grown, out, run):
    # Listed above; here every call into the rooms is watched while parts become embeddings.
    from csip.config import EmbedConfig
    from csip.evaluation.embed import embed

    passed, inside = set(), [0]
    ground = (ROOT / "csip", ROOT / "csip" / "store")

    def watch(frame, event, _):
        code = frame.f_code
        is_a_part = code.co_qualname == "embed_parts"
        if event == "call":
            inside[0] += is_a_part
            path = Path(code.co_filename)
            if inside[0] and path.is_relative_to(ROOT / "csip") and path.parent not in ground:
                passed.add(path.relative_to(ROOT).as_posix())
        elif event == "return":
            inside[0] -= is_a_part

    stage = embed(out, grown, tiny_snapshot, EmbedConfig(), "trained", tiny.runtime)
    before = sys.getprofile()
    sys.setprofile(watch)
    try:
        run(stage)
    finally:
        sys.setprofile(before)
    assert passed - LAYERS == set(FROM_CROP_TO_EMBEDDING)
    assert len(FROM_CROP_TO_EMBEDDING) <= 7


def test_a_flow_is_at_most_fifteen_lines_thick():
    flows = [(path, node) for path, tree in SOURCES for node in ast.walk(tree) if is_flow(node)]
    assert {path for path, _ in flows} >= {f"flows/{n}.py" for n in ("build_skeletons", "train_csip", "evaluate_csip")}
    assert [path for path, _ in flows if not path.startswith("flows/")] == []
    for path, node in flows:
        body = node.body[1:] if ast.get_docstring(node) else node.body
        lines = body[-1].end_lineno - body[0].lineno + 1
        assert lines <= 15, f"{path}: {node.name} has {lines} lines"


def test_a_flow_has_no_loops_over_data():
    for path, tree in SOURCES:
        for flow in filter(is_flow, ast.walk(tree)):
            loops = [n.lineno for n in ast.walk(flow) if isinstance(n, ast.For | ast.While)]
            assert loops == [], f"{path}: {flow.name} loops in lines {loops}"


def test_nothing_that_ships_prints_or_asserts():
    found = [
        f"{path}:{node.lineno}"
        for path, tree in SOURCES
        for node in ast.walk(tree)
        if isinstance(node, ast.Assert)
        or (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print")
    ]
    assert found == []


def test_no_error_is_caught_without_saying_which():
    found = []
    for path, tree in SOURCES:
        for node in ast.walk(tree):
            if isinstance(node, ast.ExceptHandler):
                kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
                if any(kind is None or getattr(kind, "id", "") in ("Exception", "BaseException") for kind in kinds):
                    found.append(f"{path}:{node.lineno}")
    assert found == []


def test_nothing_that_is_read_is_run():
    # A pickle runs what it says. ultralytics, which reads weights that way, is kept to files that a user names.
    runs = {"pickle", "cPickle", "dill", "joblib", "marshal", "shelve", "cloudpickle"}
    found = []
    for path, tree in SOURCES:
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if (
                called.partition(".")[0] in runs
                or called in ("eval", "exec", "torch.hub.load", "yaml.load")
                or (called == "torch.load" and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
            ):
                found.append(f"{path}:{node.lineno} {called}")
    assert found == []


@pytest.mark.parametrize("name", TABLES)
def test_a_tables_key_is_never_null_and_known_to_lance(name):
    marked = {}
    for field in TABLES[name]:
        metadata = {key.decode(): value.decode() for key, value in (field.metadata or {}).items()}
        position = metadata.get("lance-schema:unenforced-primary-key:position")
        if position is not None:
            assert metadata["lance-schema:unenforced-primary-key"] == "true"
            assert not field.nullable
            marked[int(position)] = field.name
    assert sorted(marked) == list(range(1, len(marked) + 1))
    assert marked


@pytest.mark.parametrize("name", TABLES)
def test_a_table_and_its_columns_say_what_they_hold(name):
    assert TABLES[name].metadata[b"csip.rows"]
    assert [field.name for field in TABLES[name] if not field.metadata.get(b"csip.meaning")] == []
    assert (ROOT / "storage_schemas" / f"{name}.py").is_file()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_every_number_of_the_config_has_a_reader(section):
    read = {
        node.attr
        for path, tree in SOURCES
        if path not in ("csip/config.py", "flows/recipes.py") and not path.startswith("csip/sections/")
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }
    assert {field.name for field in dataclasses.fields(section)} - read == set()


@pytest.mark.parametrize("section", SECTIONS, ids=lambda section: section.__name__)
def test_a_config_section_is_frozen_slotted_and_written_by_name(section):
    one = section(name="x") if section is config.Experiment else section()
    name = dataclasses.fields(section)[0].name
    with pytest.raises(dataclasses.FrozenInstanceError, match=name):
        setattr(one, name, getattr(one, name))
    assert not hasattr(one, "__dict__")
    assert all(field.kw_only for field in dataclasses.fields(section))


def test_a_package_runs_nothing_when_it_is_imported():
    # The schemas' table of tables aside, an __init__ is its docstring: what it did would escape `source_digest`.
    for path, tree in SOURCES:
        if path.endswith("__init__.py") and path != "storage_schemas/__init__.py":
            rest = tree.body[1:] if ast.get_docstring(tree) else tree.body
            assert rest == [], f"{path} does more than say what the package is"


def test_the_top_level_holds_only_what_is_allowed():
    ignored = [
        line.strip().rstrip("/")
        for line in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
        if line.strip() and not line.startswith("#")
    ]
    names = {path.name for path in ROOT.iterdir() if not path.name.startswith(".")}
    kept = {name for name in names if not any(fnmatch.fnmatch(name, pattern) for pattern in ignored)}
    assert kept - TOP_LEVEL == set()


def test_the_readmes_tree_names_every_module():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    words = set(re.findall(r"\w+", readme))
    stems = {Path(path).stem for path, _ in SOURCES} - {"__init__"}
    assert sorted(stems - words) == []


def test_the_readme_names_no_module_that_is_gone():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    files = {path.name for path in ROOT.rglob("*.py") if ".venv" not in path.parts}
    assert sorted(set(re.findall(r"\b(\w+\.py)\b", readme)) - files) == []
