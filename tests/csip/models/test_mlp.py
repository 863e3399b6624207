import pytest
import torch
from torch import nn

from csip.models.mlp import Mlp, QuickGELU, _Mlp

ACTIVATIONS = {"gelu": nn.GELU, "quick_gelu": QuickGELU}


def mlp(activation, dropout=0.0, dtype=torch.float32):
    torch.manual_seed(0)
    parts = nn.Linear(4, 6), ACTIVATIONS[activation](), nn.Dropout(dropout), nn.Linear(6, 3), nn.Dropout(dropout)
    return Mlp(*parts).to(dtype)


def test_quick_gelu_by_hand():
    # sigmoid(ln 3) = 3 / 4 and sigmoid(-ln 3) = 1 / 4.
    x = torch.log(torch.tensor(3.0)) / 1.702
    torch.testing.assert_close(QuickGELU()(torch.stack([x, -x, 0 * x])), torch.stack([0.75 * x, -0.25 * x, 0 * x]))


def formula(model, x, activation, keep=None, rate=0.0):
    up, _, _, down, _ = model
    x = x @ up.weight.T + up.bias
    x = x * (torch.sigmoid(1.702 * x) if activation == "quick_gelu" else (1 + torch.erf(x / 2**0.5)) / 2)
    x = x if keep is None else x * keep / (1 - rate)
    return x @ down.weight.T + down.bias


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_values_and_gradients_are_those_of_the_plain_formula(activation):
    model = mlp(activation)
    x = torch.randn(2, 5, 4, requires_grad=True)
    given, aim = (x, *model.parameters()), torch.randn(2, 5, 3)
    got, want = model(x), formula(model, x, activation)
    torch.testing.assert_close(got, want)
    for one, other in zip(
        torch.autograd.grad((got * aim).sum(), given), torch.autograd.grad((want * aim).sum(), given), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_gradient_is_that_of_finite_differences(activation):
    model = mlp(activation, dtype=torch.float64)
    x = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda *given: _Mlp.apply(*given, activation == "quick_gelu", 0.0), (x, *model.parameters())
    )


@pytest.mark.parametrize("rate", [0.0, 0.3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_rows_computed_a_chunk_at_a_time_are_the_same(activation, rate, monkeypatch):
    model = mlp(activation, dropout=rate).train()
    x = torch.randn(7, 4, requires_grad=True)
    found = []
    for rows in (100, 3):
        monkeypatch.setattr("csip.models.mlp._ROWS", rows)
        torch.manual_seed(5)
        out = model(x)
        found.append((out, *torch.autograd.grad(out.square().sum(), (x, *model.parameters()))))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_what_dropout_drops_is_the_same_in_both_directions(activation):
    rate = 0.4
    model = mlp(activation, dropout=rate).train()
    model[4].p = 0.0
    x = torch.randn(7, 4, requires_grad=True)
    given, aim = (x, *model.parameters()), torch.randn(7, 3)
    torch.manual_seed(5)
    got = model(x)
    torch.manual_seed(5)
    keep = torch.empty(7, 6, dtype=torch.bool).bernoulli_(1 - rate)
    assert 0 < int(keep.sum()) < keep.numel()
    want = formula(model, x, activation, keep, rate)
    torch.testing.assert_close(got, want)
    for one, other in zip(
        torch.autograd.grad((got * aim).sum(), given), torch.autograd.grad((want * aim).sum(), given), strict=True
    ):
        torch.testing.assert_close(one, other)


def test_dropout_keeps_its_rate_and_the_mean_and_stops_in_evaluation():
    model = Mlp(nn.Linear(1, 20_000), QuickGELU(), nn.Dropout(0.25), nn.Linear(20_000, 1))
    with torch.no_grad():
        for linear in (model[0], model[3]):
            linear.weight.zero_()
            linear.bias.zero_()
        model[0].bias.fill_(1.0)
        model[3].weight.fill_(1 / 20_000)
    one = float(torch.sigmoid(torch.tensor(1.702)))
    torch.manual_seed(0)
    assert float(model(torch.zeros(1, 1)).detach()) == pytest.approx(one, rel=0.02)
    assert float(model(torch.zeros(1, 1)).detach()) != pytest.approx(one, rel=1e-5)
    assert float(model.eval()(torch.zeros(1, 1)).detach()) == pytest.approx(one, rel=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_only_the_input_is_kept_and_dropouts_draw_as_bytes(activation):
    rows, hidden = 1000, 64
    model = Mlp(nn.Linear(4, hidden), ACTIVATIONS[activation](), nn.Dropout(0.1), nn.Linear(hidden, 4)).train()
    own, held = {one.data_ptr() for one in model.parameters()}, {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in own:
            held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = model(torch.randn(rows, 4, requires_grad=True))
    assert sum(held.values()) == rows * (4 * 4 + hidden)
    out.sum().backward()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_under_autocast_it_computes_in_half_precision_and_gradients_come_in_full(activation):
    model = mlp(activation, dropout=0.0)
    x = torch.randn(5, 4, requires_grad=True)
    want = torch.autograd.grad(model(x).sum(), (x, *model.parameters()))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = model(x)
    assert out.dtype == torch.bfloat16
    for one, other in zip(torch.autograd.grad(out.float().sum(), (x, *model.parameters())), want, strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, atol=0.05, rtol=0.05)


def test_what_needs_no_gradient_gets_none():
    model = mlp("gelu")
    model.requires_grad_(False)
    x = torch.randn(5, 4, requires_grad=True)
    model(x).sum().backward()
    assert x.grad is not None
    assert all(one.grad is None for one in model.parameters())
    with torch.no_grad():
        assert not model(x).requires_grad


def test_parameters_have_the_names_of_a_plain_chain():
    assert list(mlp("gelu").state_dict()) == ["0.weight", "0.bias", "3.weight", "3.bias"]
