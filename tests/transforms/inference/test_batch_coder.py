"""A batch is encoded like any list, and measured by its first element."""

import apache_beam as beam
import pytest
import torch
from apache_beam.coders.typecoders import registry
from apache_beam.typehints import Any

from transforms.inference.batch_coder import Batch, BatchCoder


def test_round_trip_of_values_of_any_kind():
    coder = registry.get_coder(Batch(Any))
    key, tensor = coder.decode(coder.encode([("a", torch.ones(2)), ("b", None)]))[0]
    assert (key, tensor.tolist()) == ("a", [1.0, 1.0])


def test_the_coder_of_the_elements_is_kept():
    assert registry.get_coder(Batch(bytes)).value_coder() == beam.coders.BytesCoder()


def test_size():
    coder = registry.get_coder(Batch(bytes))
    assert coder.estimate_size([]) == 0
    assert coder.estimate_size([b"x" * 100] * 50) == pytest.approx(5000, rel=0.1)


@pytest.mark.parametrize("element", [Any, tuple[str, bytes]])
def test_the_type_can_be_told_from_the_coder(element):
    coder = registry.get_coder(Batch(element))
    assert isinstance(coder, BatchCoder)
    assert isinstance(registry.get_coder(coder.to_type_hint()), BatchCoder)
