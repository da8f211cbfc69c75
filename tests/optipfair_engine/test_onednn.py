from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from optipfair_engine.computing import onednn
from optipfair_engine.computing.onednn import onednn_linear
from tests.numbers import assert_near

operation = onednn._operation()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN was given."""
    if operation is None:
        pytest.skip("torch has no oneDNN for this processor")
    shapes: list[tuple[int, ...]] = []

    def record(x, *rest):
        shapes.append(tuple(x.shape))
        return operation(x, *rest)

    monkeypatch.setattr(onednn, "_operation", lambda: record)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (1, 24)])
def test_a_linear_layer_gives_the_same_to_rounding(taken, shape, bias) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with onednn_linear():
            found = layer(x)
    assert taken == [shape]
    assert_near(found, expected)


def test_views_and_parts_of_weights_are_multiplied_as_they_are(taken) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(24, 9).t(), torch.randn(2, 40, 48)[1, :, ::2]
    with torch.no_grad(), onednn_linear():
        found = F.linear(x, weight)
    assert taken == [(9, 24)]
    assert_near(found, x @ weight.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types_stay_with_torch(taken, dtype) -> None:
    with torch.no_grad(), onednn_linear():
        assert F.linear(torch.ones(3, 4, dtype=dtype), torch.ones(5, 4, dtype=dtype)).dtype == dtype
    assert taken == []


def test_gradients_and_empty_inputs_stay_with_torch(taken) -> None:
    layer = torch.nn.Linear(4, 5)
    with onednn_linear():
        layer(torch.ones(3, 4)).sum().backward()
        with torch.no_grad():
            assert layer(torch.ones(0, 4)).shape == (0, 5)
    assert layer.weight.grad is not None
    assert taken == []


def test_a_bias_that_is_spread_stays_with_torch(taken) -> None:
    with torch.no_grad(), onednn_linear():
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(1)).tolist() == [[4.0] * 4] * 2
    assert taken == []


def test_autocast_decides_itself(taken) -> None:
    with torch.no_grad(), onednn_linear(), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16
    assert taken == []


def test_who_turned_onednn_off_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert onednn._operation() is None


def test_a_subclass_of_tensor_multiplies_itself(taken) -> None:
    class Quantised(torch.Tensor):
        pass

    with torch.no_grad(), onednn_linear():
        F.linear(torch.ones(3, 4), torch.ones(5, 4).as_subclass(Quantised))
    assert taken == []


def test_shapes_that_do_not_fit_get_torchs_own_text(taken) -> None:
    with torch.no_grad(), onednn_linear(), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        F.linear(torch.ones(3, 4), torch.ones(5, 6))
    assert taken == []


def test_without_the_operation_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onednn, "_operation", lambda: None)
    with torch.no_grad(), onednn_linear():
        assert F.linear(torch.ones(1, 2), torch.ones(1, 2)).item() == 2
