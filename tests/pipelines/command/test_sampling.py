import apache_beam as beam
import pytest
from apache_beam.runners.portability.fn_api_runner import FnApiRunner
from apache_beam.runners.worker import statesampler
from apache_beam.testing.util import assert_that, equal_to

from pipelines.command.sampling import shorten_sampling


class SamplingPeriod(beam.DoFn):
    def process(self, _: int) -> list[int]:
        return [statesampler.get_current_tracker().sampling_period_ms]


def test_a_bundle_waits_ten_milliseconds_at_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statesampler, "StateSampler", statesampler.StateSampler)  # put back after the test

    shorten_sampling()

    with beam.Pipeline(runner=FnApiRunner()) as pipeline:
        assert_that(pipeline | beam.Create([1]) | beam.ParDo(SamplingPeriod()), equal_to([10]))
