from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from optipfair_engine.computing import number_type, onednn, products
from optipfair_engine.computing.asked import computed_in, computing
from optipfair_engine.computing.products import fast_products
from optipfair_engine.errors import InvalidOptionError
from tests.numbers import assert_near
from tests.tiny import tiny_llama

operation = onednn.onednn_operation()
FLOAT32 = torch.nn.Linear(1, 1)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Shapes of the inputs that oneDNN was given."""
    if operation is None:
        pytest.skip("torch has no oneDNN for this processor")
    shapes: list[tuple[int, ...]] = []

    def record(x, *rest):
        shapes.append(tuple(x.shape))
        return operation(x, *rest)

    monkeypatch.setattr(products, "onednn_operation", lambda: record)
    return shapes


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(7, 24), (2, 3, 24), (1, 24)])
def test_a_linear_layer_gives_the_same_to_rounding(taken, shape, bias) -> None:
    torch.manual_seed(0)
    layer, x = torch.nn.Linear(24, 40, bias=bias), torch.randn(shape)
    with torch.no_grad():
        expected = layer(x)
        with fast_products(FLOAT32):
            found = layer(x)
    assert taken == [shape]
    assert_near(found, expected)


def test_views_and_parts_of_weights_are_multiplied_as_they_are(taken) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(24, 9).t(), torch.randn(2, 40, 48)[1, :, ::2]
    with torch.no_grad(), fast_products(FLOAT32):
        found = F.linear(x, weight)
    assert taken == [(9, 24)]
    assert_near(found, x @ weight.t())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_types_stay_with_torch(taken, dtype) -> None:
    with torch.no_grad(), fast_products(FLOAT32):
        assert F.linear(torch.ones(3, 4, dtype=dtype), torch.ones(5, 4, dtype=dtype)).dtype == dtype
    assert taken == []


def test_gradients_and_empty_inputs_stay_with_torch(taken) -> None:
    layer = torch.nn.Linear(4, 5)
    with fast_products(FLOAT32):
        layer(torch.ones(3, 4)).sum().backward()
        with torch.no_grad():
            assert layer(torch.ones(0, 4)).shape == (0, 5)
    assert layer.weight.grad is not None
    assert taken == []


def test_a_bias_that_is_spread_stays_with_torch(taken) -> None:
    with torch.no_grad(), fast_products(FLOAT32):
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3), torch.ones(1)).tolist() == [[4.0] * 4] * 2
    assert taken == []


def test_autocast_decides_itself(taken) -> None:
    with torch.no_grad(), fast_products(FLOAT32), torch.autocast("cpu", torch.bfloat16):
        assert F.linear(torch.ones(2, 3), torch.ones(4, 3)).dtype == torch.bfloat16
    assert taken == []


def test_who_turned_onednn_off_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert onednn.onednn_operation() is None


def test_a_subclass_of_tensor_multiplies_itself(taken) -> None:
    class Quantised(torch.Tensor):
        pass

    with torch.no_grad(), fast_products(FLOAT32):
        F.linear(torch.ones(3, 4), torch.ones(5, 4).as_subclass(Quantised))
    assert taken == []


def test_shapes_that_do_not_fit_get_torchs_own_text(taken) -> None:
    with torch.no_grad(), fast_products(FLOAT32), pytest.raises(RuntimeError, match="cannot be multi"):
        F.linear(torch.ones(3, 4), torch.ones(5, 6))
    assert taken == []


def test_without_the_operation_torch_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "onednn_operation", lambda: None)
    with torch.no_grad(), fast_products(FLOAT32):
        assert F.linear(torch.ones(1, 2), torch.ones(1, 2)).item() == 2


def tiny_half() -> LlamaForCausalLM:
    return tiny_llama(vocab_size=96, num_hidden_layers=2).to(torch.bfloat16)


IDS = torch.arange(24)[None]


class Copies(TorchDispatchMode):
    """The float32 tensors of a weight's shape that are there at the same time, in numbers."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._shapes = {p.shape for p in model.parameters() if p.dim() == 2}
        self._alive: dict[int, int] = {}
        self.largest = self.made = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if (
            isinstance(result, torch.Tensor)
            and result.dtype == torch.float32
            and result.shape in self._shapes
        ):
            key = id(result.untyped_storage())
            self._alive[key] = result.numel()
            weakref.finalize(result.untyped_storage(), self._alive.pop, key, None)
            self.made += 1
            self.largest = max(self.largest, sum(self._alive.values()))
        return result


def test_no_more_than_one_weight_is_held_in_float32() -> None:
    model = tiny_half()
    with torch.no_grad(), fast_products(model, "float32"), Copies(model) as copies:
        model(IDS, use_cache=False)
    assert copies.made >= 2 * 7
    assert copies.largest <= max(p.numel() for p in model.parameters())


def test_a_large_weight_is_multiplied_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_half()
    with torch.no_grad(), fast_products(model, "float32"):
        whole = model(IDS).logits
    monkeypatch.setattr(onednn, "LARGEST_COPY", 32 * 10)
    with torch.no_grad(), fast_products(model, "float32"), Copies(model) as copies:
        in_parts = model(IDS).logits
    assert copies.largest == 0
    assert_near(in_parts, whole)


def test_the_weights_stay_themselves_after_an_error() -> None:
    model = tiny_half()
    before = [(p.dtype, p.data_ptr(), p.clone()) for p in model.parameters()]

    def fail(*_args: object) -> None:
        raise KeyError

    model.model.layers[1].mlp.register_forward_hook(fail)
    with pytest.raises(KeyError), torch.no_grad(), fast_products(model, "float32"):
        model(IDS)
    for (dtype, place, value), p in zip(before, model.parameters(), strict=True):
        assert (p.dtype, p.data_ptr()) == (dtype, place)
        assert torch.equal(p, value)
    assert F.linear(torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 2, dtype=torch.bfloat16)).dtype == (
        torch.bfloat16
    )


@pytest.mark.parametrize("faster", [True, False])
def test_the_trial_decides_and_is_noted(monkeypatch: pytest.MonkeyPatch, faster: bool) -> None:
    model = tiny_half()
    monkeypatch.setattr(number_type, "float32_is_faster", lambda *_product: faster)
    with torch.no_grad(), computing():
        assert computed_in() is None
        with fast_products(model):
            dtype = model(IDS).logits.dtype
        assert dtype == (torch.float32 if faster else torch.bfloat16)
        assert computed_in() == str(dtype).removeprefix("torch.")
    with computing("checkpoint"), fast_products(model) as dtype:
        assert dtype == torch.bfloat16
    with computing("checkpoint"), computing(), fast_products(model) as dtype:
        assert dtype == torch.bfloat16
    assert computed_in() is None


def test_the_trial_follows_the_times(monkeypatch: pytest.MonkeyPatch) -> None:
    wide_times = {True: 1.0, False: 5.0}

    class Stopwatch:
        def __init__(self, product) -> None:
            self.shortest = wide_times[product().dtype == torch.float32]

        def run(self) -> None: ...

    monkeypatch.setattr(number_type, "_Stopwatch", Stopwatch)
    for half_time, expected in ((5.0, True), (1.1, False), (0.2, False)):
        wide_times[False] = half_time
        number_type.float32_is_faster.cache_clear()
        assert number_type.float32_is_faster(torch.bfloat16, 8, 8, 1) is expected
    number_type.float32_is_faster.cache_clear()


def test_models_without_a_choice_compute_in_their_own_type() -> None:
    with fast_products(tiny_half().float(), "float32") as dtype:
        assert dtype == torch.float32
    with fast_products(tiny_half().double(), "float32") as dtype:
        assert dtype == torch.float64


def test_an_accelerator_computes_as_before() -> None:
    model = tiny_half().to("meta")  # any device but the CPU
    with fast_products(model) as dtype:
        assert dtype == torch.bfloat16
    with (
        pytest.raises(InvalidOptionError, match="load it with dtype float32"),
        fast_products(model, "float32"),
    ):
        pass


def test_another_word_is_refused() -> None:
    with (
        pytest.raises(InvalidOptionError, match="must be one of auto, float32, checkpoint, not 'bfloat16'"),
        computing("bfloat16"),  # type: ignore[arg-type]
    ):
        pass
