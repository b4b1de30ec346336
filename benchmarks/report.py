"""The tables and pictures of results, and their place in the documentation: `python -m benchmarks.report --write_docs`."""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

from benchmarks import targets
from benchmarks.data import ROOT, Data
from benchmarks.peers import PEERS

Entry = dict[str, Any]

DOCS = ROOT / "docs"
_COLUMNS = (
    *("contestant", "rows", "seconds", "spread", "rows a second", "ratio", "s with start-up", "ratio", "start-up s"),
    *("CPU s", "of the cores", "peak MB"),
)
_HEAD = (f"| {' | '.join(_COLUMNS)} |", f"| --- |{' ---: |' * (len(_COLUMNS) - 1)}")


def table(entry: Entry) -> str:
    """The Markdown table of one result; ratios are to its first measured contestant."""
    base = next((each for each in entry["contestants"].values() if "reason" not in each), None)
    lines = list(_HEAD)
    for name, each in entry["contestants"].items():
        if base is None or "reason" in each:
            reason = each["reason"].splitlines()[-1].replace("|", "/")
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


def target_table(entries: list[Entry]) -> str:
    """The Markdown table of what must hold."""
    lines = ["| workload | rows | against | at least | measured |", "| --- | ---: | --- | ---: | ---: |"]
    lines += [
        f"| {what} | {rows} | {against} | {least} | {found} |"
        for what, against, least, found, rows in targets.rows(entries)
    ]
    return "\n".join(lines)


def machine(entries: list[Entry]) -> str:
    """One line: when, where and with what."""
    found = entries[-1]["machine"]
    dates = sorted({entry["date"] for entry in entries})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items())
    return (
        f"Measured {when} on {found['cores']} cores of a virtual machine ({found['cpu']}, {found['memory_bytes'] / 1e9:.0f} GB, "
        f"{found['system']}), Python {found['python']}, {packages}. Medians."
    )


def chapter(entries: list[Entry], pictures: list[str]) -> str:
    """What docs/performance.md has between its markers."""
    parts = [machine(entries), target_table(entries)]
    parts += [f"![{name}]({name})" for name in pictures]
    for entry in entries:
        title = f"{entry['title']}; {entry['rounds']} rounds, {entry['date']}, commit {entry['commit']}:"
        parts.append(f"### {entry['name']}\n\n{title}\n\n    {entry['command']}\n\n{table(entry)}")
    return "\n\n".join(parts)


def settings_chapter(found: dict[str, Any]) -> str:
    """The settings of peers, and what was tried for them."""
    lines = ["| peer | what it is | settings | tried |", "| --- | --- | --- | --- |"]
    for name, peer in PEERS.items():
        settings = (
            ", ".join(f"{key}={value}" for key, value in found["settings"].get(name, {}).items()) or "its defaults"
        )
        search = found["searches"].get(name)
        tried = (
            ""
            if search is None
            else f"{len(search['tried'])} settings on {search['rows']:,} rows of {search['workload']}"
        )
        lines.append(f"| `{name}` | {peer.title} | {settings} | {tried} |")
    return "\n".join(lines)


def put(path: Path, name: str, text: str) -> None:
    """Replaces what is between the markers of that name in a file.

    Raises:
        ValueError: the file has no such markers.
    """
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before = path.read_text()
    after, count = re.subn(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}\n{end}", before, flags=re.S
    )
    if not count:
        raise ValueError(f"{path} has no {begin} … {end}")
    path.write_text(after)


def write_docs(results: Path, settings: Path) -> None:
    """Writes tables and pictures into docs/performance.md and README.md, and the results beside them."""
    from benchmarks.pictures import bars, growth

    found = json.loads(results.read_text())
    entries = found["results"]
    pictures = [
        name
        for name, draw in (("performance.svg", bars), ("performance-growth.svg", growth))
        if draw(entries, DOCS / name)
    ]
    put(DOCS / "performance.md", "results", chapter(entries, pictures))
    if settings.exists():
        put(DOCS / "performance.md", "settings", settings_chapter(json.loads(settings.read_text())))
    put(ROOT / "README.md", "results", f"{target_table(entries)}\n\n{machine(entries)}")
    (DOCS / "performance.json").write_text(json.dumps(found, indent=1) + "\n")


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__)
    parser.add_argument(
        "--results", type=Path, default=Data.folder / "results.json", help="file that `benchmarks.run` has written"
    )
    parser.add_argument(
        "--write_docs", action="store_true", help="put tables and pictures into docs/performance.md and README.md"
    )
    given = parser.parse_args(argv)
    if not given.results.exists():
        parser.error(f"--results: there is no {given.results}; run `python -m benchmarks.run` before")
    if given.write_docs:
        write_docs(given.results, Path(__file__).parent / "settings.json")
    else:
        print(chapter(json.loads(given.results.read_text())["results"], []))
    return 0


if __name__ == "__main__":
    sys.exit(main())
