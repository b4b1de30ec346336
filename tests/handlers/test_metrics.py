import apache_beam as beam
import pytest
import torch
from apache_beam.ml.inference.base import KeyedModelHandler, RunInference

from handlers import StateDict, TorchModelHandler
from transforms import RunTorchInference


class Masked(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, mask):
        if len(x) > 4:
            raise torch.OutOfMemoryError("out of memory")
        if (x == 13).any():
            raise ValueError("thirteen")
        return (x * mask).sum(1)


def query(result, namespace):
    found = result.metrics().query(beam.metrics.MetricsFilter().with_namespace(namespace))
    values = {metric.key.metric.name: metric.result for metric in found["counters"]}
    return values | {metric.key.metric.name: metric.result for metric in found["distributions"]}


@pytest.mark.parametrize("how", ["RunInference", "RunTorchInference"])
@pytest.mark.parametrize("namespace", [None, "mine"])
def test_what_is_counted(tmp_path, how, namespace):
    torch.save(Masked().state_dict(), tmp_path / "w.pt")
    handler = TorchModelHandler(StateDict(str(tmp_path / "w.pt"), Masked), min_batch_size=100, max_batch_size=100)
    if how == "RunInference":
        step = RunInference(handler, metrics_namespace=namespace)
    else:
        step = RunTorchInference(KeyedModelHandler(handler), metrics_namespace=namespace)
    examples = [torch.ones(length) for length in (1, 2, 3, 4, 4, 4, 4, 4)] + [torch.full((4,), 13.0)]
    pipeline = beam.Pipeline(runner="FnApiRunner")
    source = pipeline | beam.Create(examples if how == "RunInference" else [(1, x) for x in examples], reshuffle=False)
    _ = source | step
    result = pipeline.run()
    result.wait_until_finish()
    found = query(result, namespace or "torchbeam")
    assert found["rows_in"] == 9
    assert found["rows_scored"] == 8
    assert found["rows_failed_forward"] == 1
    assert found["out_of_memory"] == 2  # 9 rows, and 5 of them
    assert found["micro_batch_rows"].max == 4
    assert found["micro_batch_rows"].sum == 8
    assert found["padding_percent"].count == 1
    assert 0 < found["padding_percent"].sum < 50
    assert found["model_bytes"].sum == 4
    for name in ("encode_microseconds", "forward_microseconds", "decode_microseconds", "model_load_milliseconds"):
        assert found[name].count == 1
    assert found["num_inferences"] in (9, 1)  # Beam's own; a batch is one of its inferences in RunTorchInference
