import inspect

import pytest
import torch

from csip.models.image_encoder import ImageEncoder
from csip.models.reid import CsipReID
from csip.models.skeleton_encoder import SkeletonEncoder

B, T, J, C, D, K, SIZE = 3, 2, 4, 8, 12, 5, (32, 16)
MASK = torch.tensor([[True, True], [False, True], [False, False]])


def build(*, ready=True, **settings):
    torch.manual_seed(0)
    model = CsipReID(
        image_encoder=ImageEncoder(
            name="vit_tiny_patch16_224", image_size=SIZE, width=C, depth=1, token_width=D, heads=2, num_cameras=3
        ),
        skeleton_encoder=SkeletonEncoder(positions=torch.randn(J, 2), width=C, layers=1, heads=2),
        num_labels=K,
        prototype_heads=2,
        temporal_heads=2,
        **settings,
    )
    if ready:
        model.set_prototypes(torch.randn(K, C), torch.randn(K, C))
    return model.eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return {
        "crops": torch.randn(B, T, 3, *SIZE),
        "skeleton": torch.randn(B, T, J, 3),
        "frame_mask": MASK,
        "camid": torch.tensor([0, 2, -1]),
    }


def fields(output):
    return {name: getattr(output, name) for name in output.__slots__}


def test_outputs_have_the_shapes_of_the_method(batch):
    got = {name: tuple(value.shape) for name, value in fields(build()(**batch)).items()}
    assert got == {
        "g": (B, D),
        "v_bar": (B, C),
        "f": (B, D),
        "logits_g": (B, K),
        "logits_v": (B, K),
        "logits_f": (B, K),
        "logits_frames": (B, T, K),
        "logits_prototypes": (B, K),
    }


def test_g_and_v_bar_are_means_over_frames_of_the_class_token(batch):
    model = build()
    output = model(**batch)
    for b in range(B):
        # A clip's camera applies to each of its frames.
        x, xp = model.image_encoder(batch["crops"][b], batch["camid"][b].repeat(T))
        torch.testing.assert_close(output.g[b], (x[0, 0] + x[1, 0]) / 2)
        torch.testing.assert_close(output.v_bar[b], (xp[0, 0] + xp[1, 0]) / 2)


def test_modules_are_fed_as_the_method_says(batch):
    model = build()
    output = model(**batch)
    x, xp = model.encode_images(batch["crops"], batch["camid"])
    s, _ = model.skeleton_encoder(batch["skeleton"], MASK)
    f, f_t = model.temporal(x, s, MASK)
    torch.testing.assert_close(output.f, f)
    want = model.prototype_updater(model.visual_prototypes, model.skeleton_prototypes, output.v_bar, xp, s, MASK)
    torch.testing.assert_close(output.logits_prototypes, want)
    frames = torch.stack([model.head_f.classifier(model.head_f.norm_frames(f_t[:, t])) for t in range(T)], dim=1)
    torch.testing.assert_close(output.logits_frames, frames)
    torch.testing.assert_close(output.logits_f, model.head_f.classifier(model.head_f.norm_clip(f)))
    torch.testing.assert_close(output.logits_g, model.head_g.classifier(model.head_g.norm(output.g)))
    torch.testing.assert_close(output.logits_v, model.head_v.classifier(model.head_v.norm(output.v_bar)))


def test_heads_have_frozen_zero_biases_and_small_classifiers_of_their_own_norms():
    model = build()
    norms = [model.head_g.norm, model.head_v.norm, model.head_f.norm_clip, model.head_f.norm_frames]
    assert len({id(norm) for norm in norms}) == 4
    for norm in norms:
        assert not norm.bias.requires_grad
        assert not norm.bias.any()
        assert norm.weight.requires_grad
    for head in (model.head_g, model.head_v, model.head_f):
        assert head.classifier.bias is None
        assert float(head.classifier.weight.detach().std()) == pytest.approx(0.001, rel=0.5)


def test_clips_do_not_see_each_other(batch):
    model = build()
    before = fields(model(**batch))
    order = torch.tensor([2, 0, 1])
    shuffled = fields(model(**{key: value[order] for key, value in batch.items()}))
    for name, value in before.items():
        torch.testing.assert_close(shuffled[name], value[order])
    for key in ("crops", "skeleton"):
        changed = {**batch, key: batch[key].clone()}
        changed[key][0] += torch.randn_like(changed[key][0])
        after = fields(model(**changed))
        assert not torch.allclose(after["f"][0], before["f"][0])
        for name, value in before.items():
            torch.testing.assert_close(after[name][1:], value[1:])


def gradients(model, loss):
    model.zero_grad(set_to_none=True)
    loss.backward()
    return {
        part: any(p.grad is not None and bool(p.grad.any()) for p in getattr(model, part).parameters())
        for part in ("image_encoder", "skeleton_encoder")
    }


@pytest.mark.parametrize("name", ["f", "logits_f", "logits_frames"])
def test_sgtm_gives_gradient_to_the_skeleton_encoder_only(batch, name):
    model = build().train()
    loss = fields(model(**batch))[name].square().sum()
    assert gradients(model, loss) == {"image_encoder": False, "skeleton_encoder": True}


def test_pfu_gives_gradient_to_both_encoders_and_none_to_the_prototypes(batch):
    model = build().train()
    loss = model(**batch).logits_prototypes.square().sum()
    assert gradients(model, loss) == {"image_encoder": True, "skeleton_encoder": True}
    assert not model.visual_prototypes.requires_grad
    assert not model.skeleton_prototypes.requires_grad


@pytest.mark.parametrize("name", ["g", "logits_g", "v_bar", "logits_v"])
def test_visual_heads_give_gradient_to_the_image_encoder_only(batch, name):
    model = build().train()
    loss = fields(model(**batch))[name].pow(3).sum()
    assert gradients(model, loss) == {"image_encoder": True, "skeleton_encoder": False}


def test_the_embedding_is_g_v_bar_and_visual_only_f_unnormalised(batch):
    model = build()
    got = model.embed(batch["crops"], batch["camid"])
    output = model(**{**batch, "frame_mask": torch.zeros_like(MASK)})  # no skeletons: f as the test sees it
    torch.testing.assert_close(got, torch.cat([output.g, output.v_bar, output.f], dim=1))
    assert got.shape == (B, 2 * D + C)
    assert list(inspect.signature(CsipReID.embed).parameters) == ["self", "crops", "camid"]


def test_without_sgtm_there_is_no_f(batch):
    model = build(temporal=False)
    output = model(**batch)
    assert output.f is output.logits_f is output.logits_frames is None
    assert (model.temporal, model.head_f) == (None, None)
    torch.testing.assert_close(model.embed(batch["crops"], batch["camid"]), torch.cat([output.g, output.v_bar], dim=1))


@pytest.mark.parametrize("prototypes", ["gate", "fixed", "visual", "none"])
def test_the_skeleton_encoder_runs_only_where_it_is_read(batch, prototypes):
    model = build(prototypes=prototypes, temporal=False)
    calls = []
    model.skeleton_encoder.register_forward_hook(lambda *_: calls.append(1))
    output = model(**batch)
    assert not calls
    assert (output.logits_prototypes is None) == (prototypes == "none")


def test_visual_pretraining_reads_crops_alone(batch):
    model = build(ready=False)
    g, v_bar, logits_g, logits_v = model.forward_visual(batch["crops"], batch["camid"])
    output = build()(**batch)
    torch.testing.assert_close(
        (g, v_bar, logits_g, logits_v), (output.g, output.v_bar, output.logits_g, output.logits_v)
    )


def test_frame_features_are_projected_class_tokens_without_camera(batch):
    model = build()
    crops = batch["crops"].flatten(0, 1)
    torch.testing.assert_close(model.frame_features(crops), model.image_encoder(crops)[1][:, 0])


def test_prototypes_must_be_set_before_training(batch):
    model = build(ready=False)
    with pytest.raises(ValueError, match=r"prototypes are not set; call set_prototypes"):
        model(**batch)
    assert build(ready=False, prototypes="none")(**batch).logits_prototypes is None


def test_prototypes_are_saved_with_the_weights():
    model, fresh = build(), build(ready=False)
    assert not bool(fresh.prototypes_ready)
    fresh.load_state_dict(model.state_dict())
    assert bool(fresh.prototypes_ready)
    assert torch.equal(fresh.visual_prototypes, model.visual_prototypes)
    assert torch.equal(fresh.skeleton_prototypes, model.skeleton_prototypes)


def test_prototypes_that_do_not_fit_are_refused_and_change_nothing():
    model = build(ready=False)
    with pytest.raises(ValueError, match=r"skeleton prototypes: got \(4, 8\), expected \(5, 8\)"):
        model.set_prototypes(torch.ones(K, C), torch.ones(K - 1, C))
    with pytest.raises(ValueError, match=r"visual prototypes: found NaN"):
        model.set_prototypes(torch.full((K, C), float("nan")), torch.ones(K, C))
    assert not bool(model.prototypes_ready)
    assert not model.visual_prototypes.any()


def test_encoders_of_different_widths_are_refused():
    with pytest.raises(ValueError, match=r"image encoder of width 8 and a skeleton encoder of width 16"):
        CsipReID(
            image_encoder=build().image_encoder,
            skeleton_encoder=SkeletonEncoder(positions=torch.randn(J, 2), width=16, layers=1),
            num_labels=K,
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16])
def test_mixed_precision_runs_and_prototype_logits_stay_float32(batch, dtype):
    model = build().train()
    with torch.autocast("cpu", dtype=dtype):
        output = model(**batch)
        loss = output.logits_prototypes.sum() + output.logits_frames.float().sum()
    loss.backward()
    assert output.logits_prototypes.dtype == torch.float32
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


ORDERS = [[1, 0, 2], [2, 0, 1], [2, 1, 0]]


@pytest.mark.parametrize("order", ORDERS)
def test_permuting_the_clips_permutes_everything_that_comes_out(batch, order):
    # In training without dropout too: batch norm's moments are the same in any order, and so are the flipped signs.
    at = torch.tensor(order)
    moved = {name: value[at] for name, value in batch.items()}
    for train in (False, True):
        model, again = still(train=train), still(train=train)
        torch.manual_seed(3)
        want = fields(model(**batch))
        torch.manual_seed(3)
        got = fields(again(**moved))
        for name, value in want.items():
            torch.testing.assert_close(got[name], value[at], atol=1e-5, rtol=1e-4, msg=f"{name}, train={train}")
        torch.testing.assert_close(
            model.embed(moved["crops"], moved["camid"]), model.embed(batch["crops"], batch["camid"])[at]
        )


def still(*, train=False):
    """The network without dropout."""
    model = build(prototype_dropout=0.0, temporal_dropout=0.0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    return model.train(train)


def test_in_training_a_skeleton_reaches_other_clips_through_batch_norm_alone(batch):
    other = {**batch, "skeleton": batch["skeleton"].clone()}
    other["skeleton"][0] += torch.randn(T, J, 3)
    found = []
    for one in (batch, other):
        model = still(train=True)
        torch.manual_seed(3)
        found.append(fields(model(**one)))
    before, after = found
    # What has seen no norm over the batch.
    for name in ("g", "v_bar", "f", "logits_prototypes"):
        torch.testing.assert_close(after[name][1:], before[name][1:], atol=1e-6, rtol=1e-5, msg=name)
    for name in ("f", "logits_prototypes", "logits_f", "logits_frames"):
        assert not torch.allclose(after[name][0], before[name][0]), name
    # The heads of pictures see no skeleton at all; those of f share its moments.
    assert torch.equal(after["logits_g"], before["logits_g"])
    assert torch.equal(after["logits_v"], before["logits_v"])
    assert not torch.allclose(after["logits_f"][1:], before["logits_f"][1:], atol=0, rtol=1e-6)


@pytest.mark.parametrize("clip", range(B))
def test_a_clips_gradient_comes_from_its_own_pictures_and_skeleton(batch, clip):
    model = still()
    crops, skeleton = (batch[name].clone().requires_grad_() for name in ("crops", "skeleton"))
    output = model(**{**batch, "crops": crops, "skeleton": skeleton})
    sum(value[clip].pow(2).sum() for value in fields(output).values()).backward()
    others = [i for i in range(B) if i != clip]
    assert bool(crops.grad[clip].any())
    assert not crops.grad[others].any()
    assert not skeleton.grad[others].any()
    # And from the valid frames' joints alone.
    assert skeleton.grad[clip].flatten(1).any(dim=1).tolist() == MASK[clip].tolist()


def test_pfu_pulls_at_v_bar_at_the_tokens_and_at_the_joints(batch, monkeypatch):
    model = still()
    given = {}
    forward = model.prototype_updater.forward

    def watch(visual, skeleton, v_bar, xp, s, mask):
        for name, value in (("v_bar", v_bar), ("xp", xp), ("s", s)):
            value.retain_grad()
            given[name] = value
        return forward(visual, skeleton, v_bar, xp, s, mask)

    monkeypatch.setattr(model.prototype_updater, "forward", watch)
    model(**batch).logits_prototypes.pow(2).sum().backward()
    assert {name: bool(value.grad.any()) for name, value in given.items()} == {"v_bar": True, "xp": True, "s": True}


def test_sgtm_is_given_tokens_without_a_past_and_joints_with_one(batch, monkeypatch):
    model = still()
    given = {}
    forward = model.temporal.forward

    def watch(x, s=None, mask=None):
        given.update(x=x, s=s)
        return forward(x, s, mask)

    monkeypatch.setattr(model.temporal, "forward", watch)
    model(**batch)
    assert not given["x"].requires_grad
    assert given["s"].requires_grad
