import dataclasses
import hashlib
import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from csip.config import ModelConfig
from csip.errors import CheckpointError
from csip.models.checkpoints import (
    CheckpointHeader,
    ModelSpec,
    add_heads,
    build,
    checkpoint_ref,
    encoder_digest,
    initial,
    load_checkpoint,
    save_checkpoint,
)
from csip.plain import to_plain
from csip.types import CheckpointRef


@pytest.fixture(scope="module")
def spec(tiny):
    return ModelSpec(model=tiny.model, clip=tiny.clip, layout="coco17", cameras=("a", "b", "c"), pids=(4, 7, 30, 100))


@pytest.fixture(scope="module")
def header(spec):
    return CheckpointHeader(spec, "stage1", parent="a" * 64, config={"epochs": 3})


@pytest.fixture
def network(spec):
    return initial(spec, seed=1)[0]


def refer(path):
    return CheckpointRef(str(path), hashlib.sha256(Path(path).read_bytes()).hexdigest())


def rewrite(ref, path, change):
    """Write a checkpoint anew with other metadata or tensors, as another program might."""
    with safe_open(ref.path, framework="pt") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(metadata, tensors)
    save_file(tensors, path, metadata)
    return refer(path)


def test_a_network_comes_back_bit_for_bit(network, header, tmp_path):
    torch.manual_seed(5)
    network.set_prototypes(torch.randn(4, 32), torch.randn(4, 32))
    network.head_g.norm.running_mean += 1
    loaded, found = load_checkpoint(save_checkpoint(network, header, tmp_path))
    own, other = network.state_dict(), loaded.state_dict()
    assert list(own) == list(other)
    assert all(torch.equal(own[name], other[name]) for name in own)
    assert bool(loaded.prototypes_ready)
    assert found == header


def test_a_checkpoint_is_named_by_its_stage_and_content(network, header, tmp_path):
    ref = save_checkpoint(network, header, tmp_path / "new" / "folder")
    sha = hashlib.sha256(Path(ref.path).read_bytes()).hexdigest()
    assert ref.sha256 == sha
    assert Path(ref.path) == tmp_path / "new" / "folder" / f"stage1-{sha[:12]}.safetensors"
    # Writing it again gives the same bytes, every time, and nothing else is left in the folder.
    assert {save_checkpoint(network, header, tmp_path / "new" / "folder") for _ in range(8)} == {ref}
    assert [p.name for p in (tmp_path / "new" / "folder").iterdir()] == [Path(ref.path).name]


def test_other_weights_or_another_history_give_another_name(network, header, tmp_path):
    shas = {save_checkpoint(network, header, tmp_path).sha256}
    shas.add(save_checkpoint(network, dataclasses.replace(header, parent="b" * 64), tmp_path).sha256)
    with torch.no_grad():
        network.head_g.classifier.weight[0, 0] += 1
    shas.add(save_checkpoint(network, header, tmp_path).sha256)
    assert len(shas) == 3


def test_the_header_says_how_to_build_the_network(spec, network, header, tmp_path):
    ref = save_checkpoint(network, header, tmp_path)
    with safe_open(ref.path, framework="pt") as file:
        told = json.loads(file.metadata()["csip-1"])
    assert told["spec"]["model"] == to_plain(spec.model)
    assert told["spec"]["pids"] == [4, 7, 30, 100]
    loaded, _ = load_checkpoint(checkpoint_ref(Path(ref.path)))
    assert loaded.head_g.classifier.out_features == 4
    assert len(loaded.image_encoder.camera_table) == 3
    assert loaded.image_encoder.image_size == (32, 16)


@pytest.mark.parametrize(
    ("heads", "changes"),
    [
        ({"prototypes": "none", "temporal": False}, {}),
        ({"prototypes": "gate", "temporal": True}, {}),
        ({"prototypes": "pfu", "temporal": False}, {"camera_embedding": False, "joint_layers": 2}),
        ({"prototypes": "fixed", "temporal": True}, {"image_heads": 4, "graph_positions": 3}),
    ],
)
def test_every_switch_of_the_model_survives(spec, heads, changes, tmp_path):
    other = dataclasses.replace(spec, model=dataclasses.replace(spec.model, **changes), **heads)
    ref = save_checkpoint(initial(other, 0)[0], CheckpointHeader(other, "initialise", "", {}), tmp_path)
    loaded, found = load_checkpoint(ref)
    assert found.spec == other
    assert (loaded.temporal is None) == (not other.temporal)
    assert (loaded.prototype_updater is None) == (other.prototypes == "none")
    assert (loaded.image_encoder.camera_table is None) == (not other.model.camera_embedding)


def test_initial_weights_follow_from_the_seed_and_leave_other_chance_alone(spec):
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    one = initial(spec, 1)[0].state_dict()
    assert torch.equal(torch.rand(4), want)
    two, other = initial(spec, 1)[0].state_dict(), initial(spec, 2)[0].state_dict()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["head_g.classifier.weight"], other["head_g.classifier.weight"])


def test_heads_are_added_to_a_network_that_stays_as_it_is(spec, network):
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(3)
    want = torch.rand(4)
    torch.manual_seed(3)
    grown, wanted = add_heads(network, spec, prototypes="pfu", temporal=True, seed=7)
    assert torch.equal(torch.rand(4), want)
    assert (wanted.prototypes, wanted.temporal) == ("pfu", True)
    assert dataclasses.replace(wanted, prototypes="none", temporal=False) == spec
    after = grown.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    new = {name.split(".")[0] for name in set(after) - set(before)}
    assert new == {"prototype_updater", "temporal", "head_f"}
    # What is new follows from the seed alone.
    again = add_heads(network, spec, prototypes="pfu", temporal=True, seed=7)[0].state_dict()
    assert all(torch.equal(after[name], value) for name, value in again.items())
    other = add_heads(network, spec, prototypes="pfu", temporal=True, seed=8)[0].state_dict()
    assert not torch.equal(after["temporal.visual_message.weight"], other["temporal.visual_message.weight"])


@pytest.mark.parametrize("heads", [{"prototypes": "gate"}, {"temporal": True}])
def test_heads_are_not_added_twice(spec, heads):
    other = dataclasses.replace(spec, **heads)
    with pytest.raises(ValueError, match=r"add_heads: got a network with prototypes .*before stage 2"):
        add_heads(build(other), other, prototypes="pfu", temporal=True, seed=0)


def test_a_header_keeps_its_epoch_its_figures_and_the_libraries_versions(spec, network, tmp_path):
    header = CheckpointHeader(spec, "stage2", "a" * 64, {}, epoch=12, metrics={"loss": 0.1 + 0.2, "tiny": 1e-300})
    _, found = load_checkpoint(save_checkpoint(network, header, tmp_path))
    assert (found.epoch, dict(found.metrics)) == (12, {"loss": 0.1 + 0.2, "tiny": 1e-300})
    assert found.versions["torch"] == torch.__version__.partition("+")[0]
    assert set(found.versions) == {"csip", "torch", "timm"}


def test_a_checkpoint_that_cannot_be_written_is_said_and_leaves_nothing(network, header, tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(CheckpointError, match=r"file/stage1-.*: \d+ bytes could not be written .*Free space"):
        save_checkpoint(network, header, tmp_path / "file")
    # A folder stands where the file should go.
    name = Path(save_checkpoint(network, header, tmp_path / "a").path).name
    (tmp_path / "b" / name).mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"could not be written"):
        save_checkpoint(network, header, tmp_path / "b")
    assert [p.name for p in (tmp_path / "b").iterdir()] == [name]


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"gone\.safetensors: found no such file"):
        load_checkpoint(CheckpointRef(str(tmp_path / "gone.safetensors"), "a" * 64))


@pytest.mark.parametrize("keep", [0, 5, 2000])
def test_a_damaged_file_is_refused(network, header, tmp_path, keep):
    path = Path(save_checkpoint(network, header, tmp_path).path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=rf"{path.name}: cannot be read"):
        load_checkpoint(refer(path))


def test_a_changed_file_is_refused(network, header, tmp_path):
    ref = save_checkpoint(network, header, tmp_path)
    content = bytearray(Path(ref.path).read_bytes())
    content[-1] ^= 1
    Path(ref.path).write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"expected {ref.sha256[:12]}\. The file was changed"):
        load_checkpoint(ref)


def test_a_foreign_file_is_refused(tmp_path):
    path = tmp_path / "other.safetensors"
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(CheckpointError, match=r"other\.safetensors: found metadata \[\], expected 'csip-1'"):
        checkpoint_ref(path)
    text = tmp_path / "notes.safetensors"
    text.write_text("no tensors at all")
    with pytest.raises(CheckpointError, match=r"notes\.safetensors: cannot be read"):
        checkpoint_ref(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda header: None, "does not say how to build a network"),
        (lambda header: header | {"spec": header["spec"] | {"model": {"depth": 3}}}, r"model\.depth: Unexpected"),
        (lambda header: {k: v for k, v in header.items() if k != "spec"}, "spec: .*required"),
        (lambda header: header | {"spec": header["spec"] | {"pids": ["x"]}}, r"pids\.0: .*valid integer"),
    ],
)
def test_a_header_that_this_version_cannot_read_is_refused(network, header, tmp_path, change, message):
    ref = save_checkpoint(network, header, tmp_path)

    def alter(metadata, _):
        metadata["csip-1"] = json.dumps(change(json.loads(metadata["csip-1"])))

    changed = rewrite(ref, tmp_path / "changed.safetensors", alter)
    with pytest.raises(CheckpointError, match=rf"changed\.safetensors: its header does not say .*{message}|{message}"):
        load_checkpoint(changed)


def test_a_checkpoint_of_another_format_is_refused(network, header, tmp_path):
    def alter(metadata, _):
        metadata["csip-2"] = metadata.pop("csip-1")

    ref = rewrite(save_checkpoint(network, header, tmp_path), tmp_path / "newer.safetensors", alter)
    with pytest.raises(CheckpointError, match=r"newer\.safetensors: found metadata \['csip-2'\], expected 'csip-1'"):
        load_checkpoint(ref)


def test_weights_that_do_not_fill_the_network_are_refused(network, header, tmp_path):
    ref = save_checkpoint(network, header, tmp_path)
    missing = rewrite(ref, tmp_path / "missing.safetensors", lambda _, t: t.pop("head_g.classifier.weight"))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit .*head_g\.classifier\.weight"):
        load_checkpoint(missing)
    extra = rewrite(ref, tmp_path / "extra.safetensors", lambda _, t: t.update(other=torch.zeros(1)))
    with pytest.raises(CheckpointError, match=r"(?s)does not fit .*other"):
        load_checkpoint(extra)


def test_a_header_of_an_unknown_joint_layout_is_refused(network, header, tmp_path):
    def alter(metadata, _):
        metadata["csip-1"] = metadata["csip-1"].replace("coco17", "coco18")

    ref = rewrite(save_checkpoint(network, header, tmp_path), tmp_path / "layout.safetensors", alter)
    with pytest.raises(CheckpointError, match=r"layout\.safetensors: does not fit .*coco18"):
        load_checkpoint(ref)


def test_an_encoders_digest_changes_with_all_that_changes_a_frames_feature(spec, network):
    digests = [encoder_digest(network, spec)]
    for changes in ({"height": 64}, {"width": 32}, {"mean": (0.5, 0.5, 0.5)}, {"std": (0.5, 0.5, 0.5)}):
        clip = dataclasses.replace(spec.clip, **changes)
        digests.append(encoder_digest(network, dataclasses.replace(spec, clip=clip)))
    # The same weights under another number of heads compute something else.
    heads = dataclasses.replace(spec, model=dataclasses.replace(spec.model, image_heads=4))
    again = build(heads)
    again.load_state_dict(network.state_dict())
    crop = torch.randn(1, 3, 32, 16)
    assert not torch.allclose(again.eval().frame_features(crop), network.eval().frame_features(crop))
    digests.append(encoder_digest(again, heads))
    with torch.no_grad():
        network.image_encoder.projection.weight[0, 0] += 1e-3
    digests.append(encoder_digest(network, spec))
    assert len(set(digests)) == len(digests)


def test_an_encoders_digest_ignores_what_no_frames_feature_reads(spec, network):
    before = encoder_digest(network, spec)
    with torch.no_grad():
        network.image_encoder.camera_table += 1
        network.skeleton_encoder.projection.weight += 1
        network.head_g.classifier.weight += 1
    network.set_prototypes(torch.ones(4, 32), torch.ones(4, 32))
    other = dataclasses.replace(spec, clip=dataclasses.replace(spec.clip, frames=8, flip=0), pids=(1, 2, 3, 5))
    assert encoder_digest(network, other) == before


def test_a_model_config_that_cannot_be_built_is_refused(spec):
    wrong = dataclasses.replace(spec, model=ModelConfig(image_encoder="no_such_vit", image_weights="none"))
    with pytest.raises(ValueError, match="no_such_vit"):
        build(wrong)
