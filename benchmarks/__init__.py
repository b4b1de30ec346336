"""Benchmarks: torchbeam beside the loop that one would write, and beside other tools, on the same rows. See docs/performance.md.

`run` is the command. `workloads` makes inputs and models (`tables`, `media`), `peers` has the contestants, `contest` runs each
as a process (`contestant`) under `meter`, `outputs` compares what came out, `summary` has the statistics, `report` the table
and the pictures, `search` looks for the best batch sizes.
"""
