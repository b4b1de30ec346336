"""The table and the pictures of results, and their place in the documentation."""

from __future__ import annotations

from typing import Any

_COLUMNS = (
    *("contestant", "rows", "seconds", "spread", "rows a second", "ratio", "s with start-up", "ratio", "start-up s"),
    *("CPU s", "of the cores", "peak MB"),
)
_HEAD = (f"| {' | '.join(_COLUMNS)} |", f"| --- |{' ---: |' * (len(_COLUMNS) - 1)}")


def table(entry: dict[str, Any]) -> str:
    """The Markdown table of one result; ratios are to its first contestant."""
    base = next((each for each in entry["contestants"].values() if "reason" not in each), None)
    lines = list(_HEAD)
    for name, each in entry["contestants"].items():
        if base is None or "reason" in each:
            reason = each["reason"].splitlines()[-1]
            lines.append(f"| `{name}` | not measured: {reason} |" + " |" * (len(_COLUMNS) - 2))
            continue
        work, whole = (each[figure] / base[figure] for figure in ("rows_per_second", "wall_rows_per_second"))
        cells = (
            f"`{name}`",
            f"{each['rows']:,}",
            f"{each['seconds']:.2f}",
            f"{100 * each['spread']:.0f} %",
            f"{each['rows_per_second']:,.0f}",
            f"{work:.2f}",
            f"{each['wall_seconds']:.2f}",
            f"{whole:.2f}",
            f"{each['start_seconds']:.2f}",
            f"{each['cpu_seconds']:.2f}",
            f"{100 * each['core_share']:.0f} %",
            f"{each['peak_bytes'] / 1e6:,.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
