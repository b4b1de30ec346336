"""Pictures of results: bars of ratios, and the growth curve."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "torchbeam"  # the same file for the same results

from matplotlib import pyplot as plt  # noqa: E402 - the back end is chosen before

from benchmarks.targets import measured  # noqa: E402

Entry = dict[str, Any]
_OURS, _OTHERS = "#d1495b", "#9aa5b1"
_META = {"Date": None}


def bars(entries: list[Entry], path: Path) -> bool:
    """Rows a second of each contestant, without (wide) and with start-up (narrow), a panel for each result.

    Returns:
        Whether there is anything to draw.
    """
    shown = [entry for entry in entries if entry["workload"] != "G"]
    if not shown:
        return False
    columns = 2
    figure, axes = plt.subplots(
        math.ceil(len(shown) / columns), columns, figsize=(11, 2.4 * math.ceil(len(shown) / columns)), squeeze=False
    )
    for axis in axes.flat[len(shown) :]:
        axis.set_visible(False)
    for axis, entry in zip(axes.flat, shown, strict=False):
        names = [name for name in entry["contestants"] if measured(entry, name)]
        colours = [_OURS if "torchbeam" in name or name == "elements_handler" else _OTHERS for name in names]
        for figure_name, height, alpha in (("rows_per_second", 0.8, 1.0), ("wall_rows_per_second", 0.35, 0.6)):
            values = [entry["contestants"][name][figure_name] for name in names]
            edge = "black" if height < 0.5 else "none"
            axis.barh(names, values, height, color=colours, alpha=alpha, edgecolor=edge, linewidth=0.5)
        axis.invert_yaxis()
        axis.set_title(entry["name"], fontsize=9)
        axis.tick_params(labelsize=7)
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    figure.supxlabel("rows a second; the narrow bar is with start-up", fontsize=9)
    figure.tight_layout()
    figure.savefig(path, metadata=_META)
    plt.close(figure)
    return True


def growth(entries: list[Entry], path: Path) -> bool:
    """Time a row and peak memory by the number of rows.

    Returns:
        Whether there is anything to draw.
    """
    entry = next((each for each in entries if each["workload"] == "G"), None)
    figures = [
        each for name in (entry or {"contestants": ()})["contestants"] if entry and (each := measured(entry, name))
    ]
    if len(figures) < 2:
        return False
    rows = [each["rows"] for each in figures]
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3))
    times.plot(rows, [1e6 / each["rows_per_second"] for each in figures], "o-", color=_OURS)
    times.set_ylabel("µs a row")
    memory.plot(rows, [each["peak_bytes"] / 1e6 for each in figures], "o-", color=_OURS)
    memory.set_ylabel("peak MB")
    for axis in (times, memory):
        axis.set_xscale("log")
        axis.set_ylim(bottom=0)
        axis.set_xlabel("rows")
    figure.tight_layout()
    figure.savefig(path, metadata=_META)
    plt.close(figure)
    return True
