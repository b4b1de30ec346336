import math
import threading

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from handlers.errors import BrokenModelError, DeviceLostError
from handlers.predict.loaded import LoadedModel
from handlers.predict.placement import Placement
from handlers.predict.predictor import Predictor
from handlers.tensors import Padding, Ragged

POISON = 1e6


class Picky(torch.nn.Module):
    """Twice its input; fails where a row holds poison, or where it is given too many rows, or on anything before a time."""

    def __init__(self, most_rows=None, message=lambda x: "poison"):
        super().__init__()
        self.calls = []
        self.most_rows = most_rows
        self.message = message

    def forward(self, x):
        self.calls.append(len(x))
        if self.most_rows is not None and len(x) > self.most_rows:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        if (x >= POISON).any():
            raise ValueError(self.message(x))
        return x * 2


def predictor(module, batch_size=None, parameters=("x",), **kwargs):
    return Predictor(LoadedModel(module, parameters, **kwargs), Placement("cpu"), batch_size)


def rows(count, poisoned=()):
    x = torch.arange(count, dtype=torch.float32).unsqueeze(1)
    x[list(poisoned)] += POISON
    return x


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_exactly_the_poisoned_rows_are_isolated(data):
    count = data.draw(st.integers(1, 70))
    poisoned = data.draw(st.sets(st.integers(0, count - 1)))
    size = data.draw(st.one_of(st.none(), st.integers(1, 40)))
    model = Picky()
    x = rows(count, poisoned)
    result = predictor(model, size).predict({"x": x})
    assert [row for row, _ in result.failures] == sorted(poisoned)
    good = [row for row in range(count) if row not in poisoned]
    assert result.rows.tolist() == good
    if good:
        assert torch.equal(result.outputs["output"], x[good] * 2)
    bound = 0
    for start in range(0, count, size or count):
        n = min(size or count, count - start)
        k = len([row for row in poisoned if start <= row < start + n])
        bound += 1 + 2 * k * math.ceil(math.log2(n)) if n > 1 else 1
    assert len(model.calls) <= bound


def test_a_model_that_failed_on_thousands_of_leading_rows_still_scores_the_good_one():
    poisoned = set(range(2500)) - {2300}
    result = predictor(Picky(), 256).predict({"x": rows(2500, poisoned)})
    assert result.rows.tolist() == [2300]
    assert len(result.failures) == 2499


def test_a_broken_model_is_not_halved_for_ever():
    class Broken(torch.nn.Module):
        calls = 0

        def forward(self, x):
            self.calls += 1
            raise RuntimeError(f"mat1 and mat2 shapes cannot be multiplied ({len(x)}x1 and 3x1)")

    model = Broken()
    result = predictor(model, 1024).predict({"x": rows(100_000)})
    assert len(result.failures) == 100_000
    assert model.calls < 4000  # 2,047 for the first micro-batch, and then nine each
    assert "shapes cannot be multiplied" in str(result.failures[-1][1])


def test_memory_that_runs_out_is_no_rows_fault():
    model = Picky(most_rows=100)
    found = predictor(model, 1000)
    result = found.predict({"x": rows(3000, {17})})
    assert [row for row, _ in result.failures] == [17]
    assert len(result.rows) == 2999
    assert result.stats.out_of_memory == 15  # 1000, 2 of 500, 4 of 250, 8 of 125
    model.calls.clear()
    assert not found.predict({"x": rows(500)}).failures
    assert max(model.calls) <= 100  # the size that worked is remembered


def test_one_row_that_is_too_big_alone_does_not_shrink_all_others():
    class Big(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = []

        def forward(self, x):
            self.calls.append(len(x))
            if (x == 5).any():
                raise torch.OutOfMemoryError("out of memory")
            return x

    model = Big()
    found = predictor(model, 64)
    result = found.predict({"x": rows(64)})
    assert [(row, type(error)) for row, error in result.failures] == [(5, torch.OutOfMemoryError)]
    model.calls.clear()
    found.predict({"x": rows(64) + 100})
    assert model.calls == [32, 32]


@pytest.mark.parametrize("error", [torch.AcceleratorError, RuntimeError])
def test_a_lost_device_is_no_rows_fault(error):
    class Lost(torch.nn.Module):
        def forward(self, x):
            raise error("CUDA error: device-side assert triggered")

    with pytest.raises(DeviceLostError, match="cpu is lost to this process: CUDA error: device-side assert"):
        predictor(Lost()).predict({"x": rows(8)})


def test_cublas_without_workspace_is_out_of_memory():
    class Tight(torch.nn.Module):
        def forward(self, x):
            if len(x) > 4:
                raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")
            return x

    result = predictor(Tight()).predict({"x": rows(10)})
    assert len(result.rows) == 10
    assert result.stats.out_of_memory > 0


@pytest.mark.parametrize("gives", [lambda x: x[:-1], lambda x: x.sum(), lambda x: "text", lambda x: {}])
def test_a_model_that_gives_another_number_of_rows_is_broken(gives):
    with pytest.raises(BrokenModelError, match="the model gave"):
        predictor(gives).predict({"x": rows(8)})


def test_a_program_for_a_fixed_number_of_rows_is_filled_up():
    model = Picky()
    result = predictor(model, rows=4).predict({"x": rows(10, {6})})
    assert result.rows.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 9]
    assert torch.equal(result.outputs["output"], rows(10)[result.rows] * 2)
    assert set(model.calls) == {4}
    with pytest.raises(BrokenModelError, match="exported for 4 rows, which do not fit"):
        predictor(Picky(most_rows=3), rows=4).predict({"x": rows(4)})


def test_inputs_go_by_name_over_a_gap():
    def model(a, b=None, c=None):
        return a * 1 + (0 if b is None else b * 10) + (0 if c is None else c * 100)

    x = torch.ones(2, 1)
    found = predictor(model, parameters=("a", "b", "c"))
    assert found.predict({"a": x, "c": x}).outputs["output"].tolist() == [[101.0]] * 2
    assert found.predict({"c": x, "b": x, "a": x}).outputs["output"].tolist() == [[111.0]] * 2
    assert found.predict({"a": x}, {"b": 5}).outputs["output"].tolist() == [[51.0]] * 2
    anything = predictor(lambda **inputs: sum(inputs.values()), parameters=())
    assert anything.predict({"p": x, "q": x}).outputs["output"].tolist() == [[2.0]] * 2


def test_no_rows_give_nothing():
    result = predictor(Picky()).predict({"x": rows(0)})
    assert len(result.rows) == 0
    assert result.failures == []


def test_threads_share_a_predictor():
    found = predictor(Picky(most_rows=50), 200)
    results = {}

    def work(number):
        results[number] = found.predict({"x": rows(1000, {number})})

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        assert [row for row, _ in results[number].failures] == [number]
        assert len(results[number].rows) == 999


class Tokens(torch.nn.Module):
    """Per row the sum of its real tokens, and per token twice the token; as wide as `width` whatever the length."""

    def __init__(self, width=3):
        super().__init__()
        self.shapes = []
        self.width = width

    def forward(self, ids, mask):
        self.shapes.append(tuple(ids.shape))
        if (ids == 666).any():
            raise ValueError("bad token")
        total = (ids * mask).sum(dim=1, keepdim=True)
        return {"pooled": total.repeat(1, self.width), "tokens": ids * 2}


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30), st.integers(1, 40), st.data())
def test_ragged_rows_are_padded_sorted_and_cut_back(lengths, budget, data):
    bad = data.draw(st.sets(st.integers(0, len(lengths) - 1), max_size=3))
    sequences = [torch.arange(length) + 100 * row for row, length in enumerate(lengths)]
    for row in bad:
        sequences[row] = sequences[row].clone()
        sequences[row][0] = 666
    width = data.draw(st.integers(1, 12))  # now and then as wide as a micro-batch is long
    model = Tokens(width)
    found = predictor(model, parameters=("ids", "mask"))
    padding = Padding(value=-7, mask="mask", max_tokens=budget)
    result = found.predict({"ids": Ragged.of(sequences)}, padding=padding)
    good = [row for row in range(len(lengths)) if row not in bad]
    assert result.rows.tolist() == good
    assert [row for row, _ in result.failures] == sorted(bad)
    assert all(count == 1 or count * length <= budget for count, length in model.shapes)
    if good:
        tokens = result.outputs["tokens"]
        assert isinstance(tokens, Ragged)
        for value, row in zip(tokens.rows(), good, strict=True):
            assert torch.equal(value, sequences[row] * 2)
        expected = torch.stack([sequences[row].sum().repeat(width) for row in good])
        assert torch.equal(result.outputs["pooled"], expected)
    assert result.stats.tokens <= result.stats.padded_tokens


def test_sorting_by_length_pads_little():
    generator = np.random.default_rng(0)
    sequences = [torch.ones(int(length), dtype=torch.int64) for length in generator.integers(1, 200, 400)]
    found = predictor(Tokens(), parameters=("ids", "mask"))
    result = found.predict({"ids": Ragged.of(sequences)}, padding=Padding(mask="mask", max_tokens=2000))
    assert 1 - result.stats.tokens / result.stats.padded_tokens < 0.1  # in arrival order about a half


def test_tokens_of_a_micro_batch_by_default():
    found = predictor(Tokens(), parameters=("ids", "mask"))
    result = found.predict({"ids": Ragged.of([torch.ones(300, dtype=torch.int64)] * 20)}, padding=Padding(mask="mask"))
    assert result.stats.micro_batches == [6, 6, 6, 2]  # at most 2,048 tokens on the CPU
    assert (result.stats.tokens, result.stats.padded_tokens) == (6000, 6000)


def test_tokens_are_counted_in_the_longest_input():
    short, long = ([torch.ones(length, dtype=torch.int64) for length in lengths] for lengths in ([1, 2], [3, 5]))

    class Pair(torch.nn.Module):
        def forward(self, first, second):
            return first.sum(dim=1) + second.sum(dim=1)

    found = predictor(Pair(), parameters=("first", "second"))
    stats = found.predict({"first": Ragged.of(short), "second": Ragged.of(long)}).stats
    assert (stats.tokens, stats.padded_tokens) == (3 + 5, 5 + 5)


def test_a_function_of_the_users_is_isolated_and_counted():
    def double(batch, model, device, arguments, model_id):
        for example in batch:
            if example == 13:
                raise ValueError("thirteen")
            yield example * arguments["by"]

    found = predictor(Picky(), 8)
    applied = found.apply(double, list(range(20)), {"by": 2})
    assert applied.results == [(index, index * 2) for index in range(20) if index != 13]
    assert [index for index, _ in applied.failures] == [13]
    with pytest.raises(BrokenModelError, match="inference_fn gave 3 results for 4 examples"):
        found.apply(lambda batch, *_: batch[1:], [1, 2, 3, 4])


class Shifts(torch.nn.Module):
    """Writes into what it is given, and fails on poison."""

    def forward(self, x):
        x -= 10
        if (x >= POISON / 2).any():
            raise ValueError("poison")
        return x


def test_a_model_that_writes_into_its_input_gives_each_row_the_same_answer():
    x = rows(4, [3])
    result = predictor(Shifts()).predict({"x": x})
    assert result.outputs["output"].tolist() == [[-10], [-9], [-8]]
    assert torch.equal(x, rows(4, [3]))


class Classes(torch.nn.Module):
    """Three logits a row from two sequences of one length, as many as there are tokens in the first of the batches."""

    def forward(self, ids, types, attention_mask):
        if ids.shape != types.shape or ids.shape != attention_mask.shape:
            raise ValueError("of another length")
        total = ((ids + types) * attention_mask).sum(dim=1)
        return torch.stack([total, total + 1, total + 2], dim=1)


def test_outputs_as_long_as_the_rows_by_chance_are_never_cut():
    found = predictor(Classes(), parameters=("ids", "types", "attention_mask"))
    padding = Padding(mask="attention_mask")
    zeros = torch.zeros(1, 3, dtype=torch.int64)
    alike = found.predict({"ids": Ragged.of([torch.ones(3)]), "types": zeros}, padding=padding)
    assert alike.outputs["output"].tolist() == [[3, 4, 5]]
    both = {name: Ragged.of([torch.ones(2), torch.ones(3)]) for name in ("ids", "types")}
    unlike = found.predict(both, padding=padding)
    assert unlike.outputs["output"].tolist() == [[4, 5, 6], [6, 7, 8]]


class Together(torch.nn.Module):
    """One value a token, but for two rows at least."""

    def forward(self, ids):
        if len(ids) < 2:
            raise ValueError("two rows, please")
        return ids * 2


def test_outputs_of_which_nothing_can_be_told_are_an_error_that_says_so():
    found = predictor(Together(), parameters=("ids",))
    ragged = {"ids": Ragged.of([torch.ones(2), torch.ones(3)])}
    with pytest.raises(BrokenModelError, match=r'"output" has a token axis .*two rows, please.* option cut of'):
        found.predict(ragged)
    result = found.predict(ragged, padding=Padding(cut=("output",)))
    assert [row.tolist() for row in result.outputs["output"].rows()] == [[2, 2], [2, 2, 2]]


@pytest.mark.parametrize(
    "way",
    [
        lambda x: (x * 1j).conj().imag,  # the negative bit: -x
        lambda x: torch.quantize_per_tensor(-x, 1.0, 0, torch.qint8),
        lambda x: (-x).to_sparse(),
        lambda x: (-x).to(torch.float8_e4m3fn),
        lambda x: (-x).to(torch.float8_e5m2),
        lambda x: (-x).to(torch.bfloat16),
    ],
    ids=["negative", "quantized", "sparse", "float8_e4m3fn", "float8_e5m2", "bfloat16"],
)
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_outputs_of_all_kinds_are_plain_tensors(way):
    output = predictor(way, 3).predict({"x": rows(7)}).outputs["output"]
    assert output.dtype == torch.float32
    np.testing.assert_array_equal(output.numpy(), -rows(7).numpy())


def test_conjugated_outputs():
    output = predictor(lambda x: (x * (1 + 2j)).conj()).predict({"x": rows(3)}).outputs["output"]
    np.testing.assert_array_equal(output.numpy(), rows(3).numpy() * (1 - 2j))


@pytest.mark.parametrize(
    ("way", "kind"),
    [
        (lambda x: torch.zeros(len(x), 2, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
        (lambda x: torch.empty(len(x), dtype=torch.bits8), "bits8"),
        (lambda x: torch.nested.nested_tensor(list(x)), "nested"),
    ],
    ids=["float4", "bits", "nested"],
)
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_outputs_that_cannot_be_read_are_named(way, kind):
    with pytest.raises(BrokenModelError, match=f'the model gave "output" as .*{kind}'):
        predictor(way).predict({"x": rows(3)})
