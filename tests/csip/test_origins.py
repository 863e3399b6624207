"""Where numbers come from; the published ones against method.md, written down here by hand."""

import dataclasses

import pytest

from csip.config import Experiment
from csip.origins import ORIGINS, PUBLISHED_FOR, leaves, origins_of
from flows.overrides import with_overrides
from flows.recipes import RECIPES

# method.md sections 1 to 4, for all three data sets.
INPUTS = {
    "clip.frames": 8,
    "clip.chunks": "padded",
    "clip.height": 256,
    "clip.width": 128,
    "clip.mean": (0.485, 0.456, 0.406),
    "clip.std": (0.229, 0.224, 0.225),
    "clip.flip": 0.5,
    "clip.erase": 0.5,
    "clip.erase_area": (0.02, 0.2),
    "clip.erase_aspect": (0.3, 3.3),
    "embed.sampling": "restricted",
    "embed.clip_stride": 4,
    "benchmark.skeleton_folder": "skeleton_3d_hmr2.0",
    # datasets.md section 1.1, item 8.
    "evaluate.rerank": False,
    "evaluate.rerank_k1": 50,
    "evaluate.rerank_k2": 15,
    "evaluate.rerank_weight": 0.3,
}
ENCODERS = {
    "model.image_encoder": "vit_base_patch16_clip_quickgelu_224.openai",
    "model.image_weights": "timm",
    "model.image_depth": 0,  # CLIP's own
    "model.image_width": 0,
    "model.image_heads": 0,
    "model.width": 512,
    "model.camera_embedding": True,
    "model.camera_scale": 1.0,
    "model.joint_layers": 10,
    "model.joint_heads": 8,
    "model.joint_dropout": 0.3,
    "model.graph_positions": 10,
}
STAGE1 = {
    "pretrain.epochs": 0,  # CLIP recipes skip it
    "stage1.epochs": 120,
    "stage1.batch_clips": 64,
    "stage1.learning_rate": 3.5e-4,
    "stage1.warmup_rate": 1e-5,
    "stage1.final_rate": 1e-6,
    "stage1.warmup_epochs": 5,
    "stage1.weight_decay": 1e-4,
    "stage1.temperature": 1.0,
    "stage1.normalize": False,
    "stage1.accumulate": 1,
    "stage1.precision": "auto",  # float16 with loss scaling
}
STAGE2 = {
    "model.prototype_layers": 2,
    "model.prototype_heads": 8,
    "model.prototype_dropout": 0.1,
    "model.temporal_heads": 8,
    "model.temporal_dropout": 0.1,
    "stage2.prototypes": "pfu",
    "stage2.temporal": True,
    "stage2.prototype_frames": "clip",
    "stage2.identities": 4,
    "stage2.clips_per_identity": 4,
    "stage2.learning_rate": 5e-6,
    "stage2.bias_factor": 2.0,
    "stage2.weight_decay": 1e-4,
    "stage2.warmup_epochs": 10,
    "stage2.label_smoothing": 0.1,
    "stage2.margin": 0.3,
    "stage2.identity_weight": 0.25,
    "stage2.triplet_weight": 1.0,
    "stage2.prototype_weight": 1.0,
    "stage2.frame_weight": 1.3,
    "stage2.freeze_skeleton_encoder": False,
    "stage2.accumulate": 1,
    "stage2.precision": "auto",
    "validate.select": "last",
}
# And what differs between them.
OWN = {
    "mars": {
        "clip.unit": "tracklet",
        "stage1.drop_last": False,
        "stage2.epochs": 80,
        "stage2.milestones": (30, 50, 70),
        "stage2.head_factor": 10.0,
    },
    "lsvid": {
        "clip.unit": "chunk",
        "clip.unit_frames": 48,
        "stage1.drop_last": False,
        "stage2.epochs": 80,
        "stage2.milestones": (30, 50, 70),
        "stage2.head_factor": 1.0,
    },
    "ilids": {
        "clip.unit": "window",
        "clip.unit_frames": 8,
        "clip.unit_stride": 4,
        "stage1.drop_last": True,
        "stage2.epochs": 60,
        "stage2.milestones": (30, 50),
        "stage2.head_factor": 1.0,
    },
}
NOT_READ = {"mars": {"clip.unit_frames", "clip.unit_stride"}, "lsvid": {"clip.unit_stride"}, "ilids": set()}


def every_leaf():
    """Names of every value of an experiment, read off the classes and not by the code under test."""
    names, todo = set(), [("", Experiment(name="x"))]
    while todo:
        path, value = todo.pop()
        if dataclasses.is_dataclass(value):
            todo += [(f"{path}.{f.name}".lstrip("."), getattr(value, f.name)) for f in dataclasses.fields(value)]
        else:
            names.add(path)
    return names


def test_every_number_has_an_origin_and_every_origin_a_number():
    assert set(ORIGINS) == every_leaf()
    assert set(leaves(Experiment(name="x"))) == every_leaf()


@pytest.mark.parametrize("name", ORIGINS)
def test_an_origin_names_the_method_a_library_or_a_reason_of_our_own(name):
    origin = ORIGINS[name]
    sources = ("CSIP-ReID, ", "CSIP-ReID on ", "CSIP-ReID: ", "CLIP", "ultralytics' ", "TranSG", "csip: ")
    assert origin.startswith(sources)
    assert "#" not in origin, "the mark before an origin in what `csip config` prints"
    assert "\n" not in origin


@pytest.mark.parametrize("recipe", OWN)
def test_the_papers_recipes_carry_the_papers_numbers(recipe):
    wanted = INPUTS | ENCODERS | STAGE1 | STAGE2 | OWN[recipe]
    found = leaves(RECIPES[recipe]())
    assert {name: found[name] for name in wanted} == wanted
    assert found["dataset"] == recipe


@pytest.mark.parametrize("recipe", OWN)
def test_the_papers_numbers_are_all_and_only_those_that_are_said_to_be_the_papers(recipe):
    # "csip" may give reasons for values that the paper's silence or a switched-off part leaves as they are.
    ours = {"pretrain.epochs", "stage1.accumulate", "stage2.accumulate"}
    origins = origins_of(RECIPES[recipe](), [])
    published = {name for name, origin in origins.items() if origin.startswith(("CSIP-ReID", "CLIP"))}
    assert published - NOT_READ[recipe] == set(INPUTS | ENCODERS | STAGE1 | STAGE2 | OWN[recipe]) - ours


@pytest.mark.parametrize(
    ("recipe", "name", "origin"),
    [
        ("mars", "stage2.head_factor", "CSIP-ReID on MARS"),
        ("lsvid", "stage2.head_factor", "CSIP-ReID on LS-VID"),
        ("ilids", "stage2.head_factor", "CSIP-ReID on iLIDS-VID"),
        ("lsvid", "clip.unit", "CSIP-ReID on LS-VID"),
        ("lsvid", "stage2.epochs", "CSIP-ReID on MARS and LS-VID"),
        ("ilids", "stage2.epochs", "CSIP-ReID on iLIDS-VID"),
        ("ilids", "stage2.milestones", "CSIP-ReID on iLIDS-VID"),
        ("ilids", "stage1.drop_last", "CSIP-ReID on iLIDS-VID"),
        ("ilids", "stage1.epochs", "CSIP-ReID, stage 1"),
        ("lsvid", "dataset", "recipe lsvid"),
        ("video", "stage2.learning_rate", "CSIP-ReID, stage 2"),
        ("video", "stage2.head_factor", "CSIP-ReID on MARS"),
        ("demo", "stage2.learning_rate", "recipe demo"),
        ("demo", "model.image_encoder", "recipe demo"),
        ("demo", "stage2.margin", "CSIP-ReID, stage 2's loss"),
        ("demo", "detect.iou", "ultralytics' default"),
        ("walkers", "pretrain.epochs", "recipe walkers"),
    ],
)
def test_an_origin_follows_who_set_the_number_last(recipe, name, origin):
    assert origins_of(RECIPES[recipe](), [])[name] == origin
    # What is set by hand comes from there, though it be the recipe's own value.
    assert origins_of(RECIPES[recipe](), [f"{name}=whatever"])[name] == "--set"


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_is_named_for_what_it_changes_and_for_nothing_else(recipe):
    made, plain = leaves(RECIPES[recipe]()), leaves(Experiment(name=recipe))
    origins = origins_of(RECIPES[recipe](), [])
    changed = {name for name in made if made[name] != plain[name]}
    assert {name for name, origin in origins.items() if origin == f"recipe {recipe}"} <= changed
    assert all(origins[name] in (f"recipe {recipe}", PUBLISHED_FOR.get(recipe)) for name in changed)
    assert origins.keys() == made.keys()
    assert all(origins[name] == ORIGINS[name] for name in made.keys() - changed)


def test_leaves_are_spelled_as_set_takes_them():
    experiment = with_overrides(RECIPES["demo"](), ["stage2.milestones=1,2", "seed=5"])
    found = leaves(experiment)
    assert (found["stage2.milestones"], found["seed"], found["name"]) == ((1, 2), 5, "demo")
