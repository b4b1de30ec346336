"""The process of one contestant: `python -m benchmarks.contestant TARGET JOB MARKS`; TARGET is `module:function`, JOB is JSON."""

from __future__ import annotations

import importlib
import json
import os
import sys
from pathlib import Path

from benchmarks.job import Clock, Job

if __name__ == "__main__":
    target, job, marks = sys.argv[1:]
    module, name = target.split(":")
    clock = Clock()
    getattr(importlib.import_module(module), name)(Job(**json.loads(job)), clock)
    Path(marks).write_text(json.dumps({"seconds": clock.seconds}))
    sys.stdout.flush()
    os._exit(0)  # no waiting for the threads of a runner, as `torchbeam` itself
