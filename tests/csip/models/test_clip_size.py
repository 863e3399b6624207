"""CLIP ViT-B/16 at the paper's sizes, with random weights: both stages run, and a weights file finds its places."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from csip.errors import WeightsError
from csip.models.image_encoder import ImageEncoder, load_image_weights
from csip.models.reid import CsipReID
from csip.models.skeleton_encoder import SkeletonEncoder
from csip.training.losses import contrastive_pair, stage2_loss

pytestmark = pytest.mark.slow

CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
B, T, J, K, C, D = 4, 8, 17, 5, 512, 768


def encoders(num_cameras=3):
    torch.manual_seed(0)
    image = ImageEncoder(name=CLIP, image_size=(256, 128), width=C, num_cameras=num_cameras)
    return image, SkeletonEncoder(positions=torch.randn(J, 10), width=C)


@pytest.fixture(scope="module")
def clips():
    """Two clips each of two people; one frame and one whole clip without skeletons."""
    torch.manual_seed(1)
    mask = torch.ones(B, T, dtype=torch.bool)
    mask[0, 3], mask[3] = False, False
    return {
        "crops": torch.randn(B, T, 3, 256, 128),
        "skeleton": torch.randn(B, T, J, 3),
        "frame_mask": mask,
        "camid": torch.tensor([0, 2, 1, 0]),
    }, torch.tensor([1, 1, 4, 4])


def without_gradient(module):
    """Names of parameters that got no gradient; every gradient there is must be finite and not all zero."""
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.any(), name
    return {name for name, parameter in module.named_parameters() if parameter.grad is None}


def test_stage_1_trains_the_skeleton_encoder_alone(clips):
    inputs, label = clips
    image, skeleton = encoders()
    image.eval()
    with torch.no_grad():
        x, xp = image(inputs["crops"].flatten(0, 1))
    assert x.shape == (B * T, 129, D)
    assert xp.shape == (B * T, 129, C)
    v_bar = xp[:, 0].unflatten(0, (B, T)).mean(dim=1)
    s, s_bar = skeleton.train()(inputs["skeleton"], torch.ones(B, T, dtype=torch.bool))
    assert s.shape == (B, T, J, C)
    loss = contrastive_pair(v_bar, s_bar, label)
    loss.backward()
    assert torch.isfinite(loss)
    assert not without_gradient(skeleton)
    assert without_gradient(image) == set(dict(image.named_parameters()))


def test_stage_2_trains_everything_but_the_norms_frozen_biases(clips):
    inputs, label = clips
    image, skeleton = encoders()
    model = CsipReID(image_encoder=image, skeleton_encoder=skeleton, num_labels=K).train()
    model.set_prototypes(torch.randn(K, C), torch.randn(K, C))
    output = model(**inputs)
    wanted = {
        **dict.fromkeys(("g", "f"), (B, D)),
        "v_bar": (B, C),
        "logits_frames": (B, T, K),
        **dict.fromkeys(("logits_g", "logits_v", "logits_f", "logits_prototypes"), (B, K)),
    }
    assert {name: getattr(output, name).shape for name in wanted} == wanted
    loss = stage2_loss(
        output,
        label,
        label_smoothing=0.1,
        margin=0.3,
        identity_weight=0.25,
        triplet_weight=1.0,
        prototype_weight=1.0,
        frame_weight=1.3,
    ).total
    loss.backward()
    assert torch.isfinite(loss)
    norms = ("head_g.norm", "head_v.norm", "head_f.norm_clip", "head_f.norm_frames")
    assert without_gradient(model) == {f"{norm}.bias" for norm in norms}


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    """A file as timm writes it: at 224x224, so with 14x14 positions, and CLIP's head without a bias' effect."""
    torch.manual_seed(2)
    state = timm.create_model(CLIP, pretrained=False).state_dict()
    weights = {name: 0.02 * torch.randn_like(value) for name, value in state.items()}
    weights["head.bias"].zero_()
    assert weights["pos_embed"].shape == (1, 1 + 14 * 14, D)
    path = tmp_path_factory.mktemp("weights") / "clip.safetensors"
    save_file(weights, path)
    return path


def test_every_tensor_of_a_weights_file_finds_its_place(weights_file):
    image, _ = encoders()
    weights, cameras = load_file(weights_file), image.camera_table.detach().clone()
    source = load_image_weights(image, str(weights_file))
    assert list(source) == [str(weights_file)]
    state = image.state_dict()
    moved = {"pos_embed", "head.weight", "head.bias"}
    assert state.keys() - {f"trunk.{name}" for name in weights.keys() - moved} == {
        "trunk.pos_embed",
        "projection.weight",
        "camera_table",
    }
    for name in weights.keys() - moved:
        assert torch.equal(state[f"trunk.{name}"], weights[name]), name
    assert torch.equal(state["projection.weight"], weights["head.weight"])
    assert torch.equal(state["camera_table"], cameras)
    # 14x14 to 16x8: the class token's position as it is, the patches' bilinearly, no antialias, corners not aligned.
    cls, patches = weights["pos_embed"][:, :1], weights["pos_embed"][:, 1:]
    image_like = patches.transpose(1, 2).reshape(1, D, 14, 14)
    wanted = F.interpolate(image_like, size=(16, 8), mode="bilinear", align_corners=False, antialias=False)
    wanted = torch.cat([cls, wanted.reshape(1, D, 16 * 8).transpose(1, 2)], dim=1)
    torch.testing.assert_close(state["trunk.pos_embed"], wanted)


def test_loaded_weights_give_the_tokens_of_timms_own_model(weights_file):
    image, _ = encoders()
    load_image_weights(image.eval(), str(weights_file))
    own = timm.create_model(CLIP, pretrained=False, img_size=(256, 128)).eval()
    own.load_state_dict(load_file(weights_file) | {"pos_embed": image.trunk.pos_embed.detach()})
    crops = torch.randn(2, 3, 256, 128)
    with torch.no_grad():
        x, xp = image(crops)
        torch.testing.assert_close(x, own.forward_features(crops), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(xp[:, 0], own(crops), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            lambda weights: weights.pop("blocks.7.mlp.fc2.weight"),
            r"1 missing: trunk\.blocks\.7\.mlp\.fc2\.weight\. Expected every one, .*; nothing was loaded",
        ),
        (
            lambda weights: weights.update({"blocks.3.attn.qkv.weight": torch.zeros(3 * D, D - 1)}),
            r"1 of another shape: trunk\.blocks\.3\.attn\.qkv\.weight \(2304, 767\) for \(2304, 768\)\.",
        ),
    ],
)
def test_a_file_that_does_not_fit_is_refused_and_changes_nothing(weights_file, tmp_path, spoil, message):
    image, _ = encoders()
    before = {name: value.clone() for name, value in image.state_dict().items()}
    weights = load_file(weights_file)
    spoil(weights)
    save_file(weights, tmp_path / "spoilt.safetensors")
    with pytest.raises(WeightsError, match=message):
        load_image_weights(image, str(tmp_path / "spoilt.safetensors"))
    assert all(torch.equal(before[name], value) for name, value in image.state_dict().items())
