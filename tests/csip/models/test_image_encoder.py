import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from csip.errors import WeightsError
from csip.models.image_encoder import ImageEncoder, _lean, load_image_weights, resize_positions

CLIP = "vit_base_patch16_clip_quickgelu_224.openai"
SMALL = {"depth": 2, "token_width": 24, "heads": 2}


def small(name="vit_tiny_patch16_224", *, image_size=(64, 32), width=12, num_cameras=0, **more):
    torch.manual_seed(0)
    return ImageEncoder(
        name=name, image_size=image_size, width=width, num_cameras=num_cameras, **{**SMALL, **more}
    ).eval()


def timm_weights(name="vit_tiny_patch16_224", num_classes=7):
    """A file's content as timm writes it: square images, the model's own head."""
    torch.manual_seed(1)
    model = timm.create_model(name, img_size=64, depth=2, embed_dim=24, num_heads=2, num_classes=num_classes)
    return {key: torch.randn_like(value) for key, value in model.state_dict().items()}


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_tiny_patch16_224", 1 + 8),
        (CLIP, 1 + 8),  # a norm before the blocks, QuickGELU
        ("vit_small_patch14_reg4_dinov2", 1 + 4 + 8),  # registers, positions for patches only
        ("deit_tiny_distilled_patch16_224", 2 + 8),
    ],
)
def test_tokens_without_a_camera_are_timms_own(name, tokens):
    size = (56, 28) if "patch14" in name else (64, 32)
    encoder = small(name, image_size=size, num_cameras=3)
    crops = torch.randn(2, 3, *size)
    x, xp = encoder(crops)
    assert encoder.num_tokens == tokens
    assert encoder.token_width == 24
    assert x.shape == (2, tokens, 24)
    # The trunk's MLPs are ours, so timm's model is built anew.
    own = timm.create_model(
        name, img_size=size, depth=2, embed_dim=24, num_heads=2, num_classes=0, global_pool="token"
    ).eval()
    own.load_state_dict(encoder.trunk.state_dict())
    torch.testing.assert_close(x, own.forward_features(crops))
    torch.testing.assert_close(xp, torch.einsum("nld,cd->nlc", x, encoder.projection.weight))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", CLIP])
def test_gradients_are_those_of_timms_own_model(name):
    encoder = small(name)
    own = timm.create_model(name, img_size=(64, 32), depth=2, embed_dim=24, num_heads=2, num_classes=0).eval()
    own.load_state_dict(encoder.trunk.state_dict())
    crops, aim = torch.randn(2, 3, 64, 32), torch.randn(2, 9, 24)
    (encoder(crops)[0] * aim).sum().backward()
    (own.forward_features(crops) * aim).sum().backward()
    wanted = dict(own.named_parameters())
    for key, parameter in encoder.trunk.named_parameters():
        torch.testing.assert_close(parameter.grad, wanted[key].grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", CLIP])
def test_no_block_keeps_a_tensor_of_its_mlps_width(name):
    encoder, saved = small(name), []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: saved.append(one) or one, lambda one: one):
        encoder(torch.randn(2, 3, 64, 32))
    weights = {parameter.data_ptr() for parameter in encoder.parameters()}
    wide = {one.data_ptr() for one in saved if one.shape[-1:] == (96,) and one.ndim > 1} - weights
    assert saved
    assert not wide


@pytest.mark.parametrize(
    ("name", "more"), [("vit_small_patch14_reg4_dinov2", {"act_layer": "gelu_tanh"}), ("vit_giant_patch14_dinov2", {})]
)
def test_other_mlps_of_timm_stay_as_they_are(name, more):
    # The first has GELU's tanh form, the second gates.
    mlp = timm.create_model(name, img_size=28, depth=1, embed_dim=24, num_heads=2, **more).blocks[0].mlp
    assert _lean(mlp) is mlp


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", CLIP])
def test_the_camera_vector_is_added_to_the_class_token(name):
    encoder = small(name, num_cameras=3, camera_scale=2.0)
    crops, table = torch.randn(2, 3, 64, 32), encoder.camera_table.detach()
    got, _ = encoder(crops, torch.tensor([2, -1]))
    plain = encoder.trunk.cls_token.data.clone()
    for i, vector in enumerate((table[2], (table[0] + table[1] + table[2]) / 3)):  # -1 is the mean of all
        encoder.trunk.cls_token.data = plain + 2.0 * vector
        torch.testing.assert_close(got[i], encoder.trunk.forward_features(crops[i : i + 1])[0])


def test_the_camera_table_is_drawn_with_standard_deviation_2_percent():
    encoder = small(num_cameras=200)
    assert encoder.camera_table.shape == (200, 24)
    assert float(encoder.camera_table.detach().std()) == pytest.approx(0.02, rel=0.1)


def test_without_a_camera_table_camera_ids_are_ignored():
    encoder, crops = small(), torch.randn(2, 3, 64, 32)
    assert encoder.camera_table is None
    torch.testing.assert_close(encoder(crops, torch.tensor([0, 99]))[0], encoder(crops)[0])


@pytest.mark.parametrize("camid", [[0, 3], [-2, 0]])
def test_a_camera_outside_the_table_is_refused(camid):
    encoder = small(num_cameras=3)
    with pytest.raises(ValueError, match=r"expected 0 to 2, or -1 for a camera the model does not know"):
        encoder(torch.randn(2, 3, 64, 32), torch.tensor(camid))


def test_images_of_a_batch_do_not_see_each_other():
    encoder, crops = small(num_cameras=2), torch.randn(3, 3, 64, 32)
    before, _ = encoder(crops, torch.tensor([0, 1, 0]))
    after, _ = encoder(crops + torch.tensor([1.0, 0, 0])[:, None, None, None], torch.tensor([1, 1, 0]))
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1:], after[1:])


def test_clip_at_256x128_has_129_tokens_and_its_own_512_wide_projection():
    encoder = ImageEncoder(name=CLIP, image_size=(256, 128), width=512)
    assert (encoder.num_tokens, encoder.token_width) == (129, 768)
    assert encoder.uses_own_projection
    assert encoder.projection.weight.shape == (512, 768)
    assert encoder.projection.bias is None
    assert not any("head" in key for key in encoder.state_dict())


def test_another_width_than_clips_or_a_classifier_gets_a_fresh_projection():
    assert not small(CLIP, width=64).uses_own_projection
    assert not small("vit_base_patch16_clip_224.openai_ft_in1k", width=1000).uses_own_projection
    fresh = small(width=400)
    assert not fresh.uses_own_projection
    assert float(fresh.projection.weight.detach().std()) == pytest.approx(24**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "vit_base_patch16_siglip_224"}, r"VisionTransformer, class token no"),
        ({"name": "resnet18"}, r"timm cannot build it"),
        ({"name": "no_such_model"}, r"timm cannot build it"),
        ({"heads": 5}, r"multiple of the heads"),
        ({"image_size": (60, 32)}, r"got images of 60x32, expected .* multiples of its patches, 16x16"),
    ],
)
def test_a_model_that_cannot_serve_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)


def test_crops_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"got crops \(1, 3, 32, 64\), expected \(N, 3, 64, 32\)"):
        small()(torch.randn(1, 3, 32, 64))


def bilinear(image, rows, columns):
    """Interpolate (H, W) by the formula for pixel centres (align_corners=False), one target at a time."""
    height, width = image.shape
    out = torch.zeros(rows, columns, dtype=image.dtype)
    for r in range(rows):
        for c in range(columns):
            y = min(max((r + 0.5) * height / rows - 0.5, 0), height - 1)
            x = min(max((c + 0.5) * width / columns - 0.5, 0), width - 1)
            y0, x0 = math.floor(y), math.floor(x)
            y1, x1 = min(y0 + 1, height - 1), min(x0 + 1, width - 1)
            top = (1 - (x - x0)) * image[y0, x0] + (x - x0) * image[y0, x1]
            bottom = (1 - (x - x0)) * image[y1, x0] + (x - x0) * image[y1, x1]
            out[r, c] = (1 - (y - y0)) * top + (y - y0) * bottom
    return out


@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_positions_are_interpolated_bilinearly_and_prefixes_kept(prefix):
    positions = torch.randn(1, prefix + 16, 2)
    got = resize_positions(positions, (5, 3), prefix, "here")
    torch.testing.assert_close(got[:, :prefix], positions[:, :prefix])
    for channel in range(2):
        want = bilinear(positions[0, prefix:, channel].reshape(4, 4), 5, 3)
        torch.testing.assert_close(got[0, prefix:, channel].reshape(5, 3), want)


def test_positions_that_already_fit_stay_as_they_are():
    square, oblong = torch.randn(1, 17, 2), torch.randn(1, 9, 2)
    assert resize_positions(square, (4, 4), 1, "here") is square
    assert resize_positions(oblong, (4, 2), 1, "here") is oblong
    with pytest.raises(WeightsError, match=r"here: found 8 patch positions, expected a square or 3x2"):
        resize_positions(oblong, (3, 2), 1, "here")


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "bin"])
def test_a_file_in_timms_naming_fills_the_trunk(tmp_path, suffix):
    encoder, weights, path = small(num_cameras=2), timm_weights(), tmp_path / f"weights.{suffix}"
    if suffix == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    projection, cameras = encoder.projection.weight.clone(), encoder.camera_table.clone()
    load_image_weights(encoder, str(path))
    state = encoder.trunk.state_dict()
    for key in weights.keys() - {"pos_embed", "head.weight", "head.bias"}:
        assert torch.equal(state[key], weights[key]), key
    want = bilinear(weights["pos_embed"][0, 1:, 5].reshape(4, 4), 4, 2).flatten()
    torch.testing.assert_close(state["pos_embed"][0, 1:, 5], want)
    assert torch.equal(encoder.projection.weight, projection)
    assert torch.equal(encoder.camera_table, cameras)


def test_clips_head_becomes_the_projection(tmp_path):
    encoder, weights = small(CLIP, width=512), timm_weights(CLIP, num_classes=512)
    weights["head.bias"].zero_()
    torch.save(weights, tmp_path / "clip.pt")
    load_image_weights(encoder, str(tmp_path / "clip.pt"))
    assert torch.equal(encoder.projection.weight, weights["head.weight"])
    weights["head.bias"][3] = 1
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"found a head with a bias"):
        load_image_weights(encoder, str(tmp_path / "clip.pt"))
    del weights["head.weight"], weights["head.bias"]
    torch.save(weights, tmp_path / "clip.pt")
    with pytest.raises(WeightsError, match=r"1 missing: projection\.weight"):
        load_image_weights(encoder, str(tmp_path / "clip.pt"))


def test_a_partial_or_foreign_file_is_refused_and_changes_nothing(tmp_path):
    encoder, weights = small(), timm_weights()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    del weights["blocks.1.attn.qkv.weight"]
    weights["blocks.2.norm1.weight"] = torch.ones(24)
    weights["norm.bias"] = torch.ones(25)
    torch.save(weights, tmp_path / "bad.pt")
    with pytest.raises(WeightsError, match="nothing was loaded") as caught:
        load_image_weights(encoder, str(tmp_path / "bad.pt"))
    for part in (
        "bad.pt",
        "1 missing: trunk.blocks.1.attn.qkv.weight",
        "1 unexpected: trunk.blocks.2.norm1.weight",
        "1 of another shape: trunk.norm.bias (25,) for (24,)",
    ):
        assert part in str(caught.value)
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_none_keeps_the_initial_weights():
    encoder = small()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    load_image_weights(encoder, "none")
    assert all(torch.equal(before[key], value) for key, value in encoder.state_dict().items())


def test_files_that_are_missing_or_no_weights_are_named(tmp_path):
    encoder = small()
    with pytest.raises(WeightsError, match=r"no file at .*absent\.pt"):
        load_image_weights(encoder, str(tmp_path / "absent.pt"))
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(WeightsError, match=r"text\..* cannot be read as weights"):
            load_image_weights(encoder, str(tmp_path / name))
    torch.save([torch.ones(2)], tmp_path / "list.pt")
    with pytest.raises(WeightsError, match=r"found list, expected tensors by name"):
        load_image_weights(encoder, str(tmp_path / "list.pt"))


def test_timms_download_is_fitted_like_a_file(monkeypatch):
    encoder, weights = small(), timm_weights()
    source = timm.create_model("vit_tiny_patch16_224", img_size=64, depth=2, embed_dim=24, num_heads=2, num_classes=7)
    source.load_state_dict(weights)
    asked = []
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: asked.append((name, pretrained)) or source)
    load_image_weights(encoder, "timm")
    assert asked == [("vit_tiny_patch16_224", True)]
    assert torch.equal(encoder.trunk.blocks[1].attn.qkv.weight, weights["blocks.1.attn.qkv.weight"])


def test_no_connection_says_what_was_sought_and_what_to_do(monkeypatch):
    def offline(*_, **__):
        raise FileNotFoundError("cannot find the requested files in the local cache")

    encoder = small()
    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(WeightsError, match=r"Weights of vit_tiny_patch16_224: found none in .* Connect once, copy"):
        load_image_weights(encoder, "timm")


def test_a_file_in_the_users_cache_goes_before_timms_download(monkeypatch, tmp_path):
    def never(*_, **__):
        raise OSError("asked for a download although the file is in the cache")

    kept = small()
    monkeypatch.setenv("CSIP_CACHE", str(tmp_path))
    (tmp_path / "weights").mkdir()
    state = {key.removeprefix("trunk."): value for key, value in kept.state_dict().items() if key.startswith("trunk.")}
    save_file(state, tmp_path / "weights" / "vit_tiny_patch16_224.safetensors")
    encoder = small()
    monkeypatch.setattr(timm, "create_model", never)
    load_image_weights(encoder, "timm")
    assert torch.equal(encoder.trunk.blocks[0].mlp.fc1.weight, kept.trunk.blocks[0].mlp.fc1.weight)
