"""Measures torchbeam beside other ways to score the same rows: `python -m benchmarks.run --workload=T --peers=loop,torchbeam`.

Every contestant is a process of its own. They take turns for some rounds, each round beginning with another one, and a time
counts only if the output equals that of the loop. docs/performance.md says how to read the figures.
"""

from __future__ import annotations

import argparse
import compileall
import datetime
import importlib.util
import json
import os
import platform
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.contest import Contest, Figures, hold
from benchmarks.data import ROOT, Data, DiskFullError
from benchmarks.peers import PEERS
from benchmarks.workloads import WORKLOADS

SETTINGS = Path(__file__).parent / "settings.json"
PACKAGES = (
    "apache-beam",
    "torch",
    "pyarrow",
    "numpy",
    "pyspark",
    "ray",
    "daft",
    "sentence-transformers",
    "torchvision",
)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    memory = next((int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if "MemTotal" in line), 0)
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "memory_bytes": memory,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version for name in PACKAGES if (version := _version(name))},
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines() if Path(path).exists() else []


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the working tree; with a + if it has changes."""
    found = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True)
    return found.stdout.strip()


def compile_packages() -> None:
    """Compiles our packages, as pip does when it installs them; else each start of a contestant would compile them again.

    Tells where the packages of the environment are not compiled: with Beam and PyTorch that makes each start 3 s longer.
    """
    for name in ("handlers", "transforms", "pipelines", "torchbeam", "benchmarks"):
        compileall.compile_dir(ROOT / name, quiet=2)
    torch = importlib.util.find_spec("torch")
    if torch is not None and torch.cached is not None and not Path(torch.cached).exists():
        tell(f"warning: the packages are not compiled; run: {sys.executable} -m compileall -q -j 0 {sys.prefix}/lib")


def add(path: Path, entry: dict[str, Any]) -> None:
    """Puts the result of one workload into the file of results, in the place of one with the same name."""
    found = json.loads(path.read_text()) if path.exists() else {"results": []}
    found["results"] = [each for each in found["results"] if each["name"] != entry["name"]] + [entry]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1))


def tell(line: str) -> None:
    """A line of progress."""
    print(line, file=sys.stderr, flush=True)


def names_of(text: str, known: dict[str, Any], what: str, parser: argparse.ArgumentParser) -> list[str]:
    """Names separated by commas; ends with exit code 2 if one is unknown."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        parser.error(f"--{what} is empty; known are {', '.join(known)}")
    for name in names:
        if name.partition("@")[0] not in known:
            parser.error(f"--{what}: there is no {name}; known are {', '.join(known)}")
    return names


def count(text: str) -> int:
    """A positive number, such as 4_000_000, 4000000 or 4M."""
    digits = text.upper().replace("_", "").replace(",", "")
    scale = {"K": 1000, "M": 1_000_000}.get(digits[-1:], 1)
    number = int(digits.rstrip("KM")) * scale
    if number < 1:
        raise ValueError(text)
    return number


def options() -> argparse.ArgumentParser:
    """The command line."""
    known = "\n".join(f"  {name:10} {workload.title}" for name, workload in WORKLOADS.items())
    peers = "\n".join(f"  {name:20} {peer.title}" for name, peer in PEERS.items())
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.run",
        description=__doc__,
        epilog=f"workloads:\n{known}\n\npeers:\n{peers}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--workload", default="T", help="names, separated by commas (default: T)")
    parser.add_argument("--peers", help="names, separated by commas (default: all that can do the workload)")
    parser.add_argument("--rows", type=count, help="rows, such as 400000 or 4M (default: few, by workload)")
    parser.add_argument("--rounds", type=count, default=3, help="runs of each, of which the median counts (default: 3)")
    parser.add_argument("--name", help="name of the result in the file (default: the workload and the number of rows)")
    parser.add_argument(
        "--output", type=Path, help="file of results, to which these are added (default: DATA/results.json)"
    )
    parser.add_argument(
        "--data", type=Path, default=Data.folder, help="folder of inputs and models (default: out/benchmark)"
    )
    return parser


def main(argv: list[str] | None = None) -> int:
    """Runs the command and returns its exit code."""
    parser = options()
    given = parser.parse_args(argv)
    data = Data(given.data)
    output = given.output or data.folder / "results.json"
    chosen = names_of(given.workload, WORKLOADS, "workload", parser)
    peers = names_of(given.peers, PEERS, "peers", parser) if given.peers else None
    compile_packages()
    settings = json.loads(SETTINGS.read_text())["settings"] if SETTINGS.exists() else {}
    for name in chosen:
        workload = WORKLOADS[name]
        rows = given.rows or workload.rows
        label = given.name or f"{name}, {rows:,} rows"
        tell(f"{label}: {workload.title}")
        try:
            contest = Contest(workload, rows, data, settings)
        except DiskFullError as error:
            tell(f"{parser.prog}: error: {error}")
            return 1
        taking = [each for each in contest.names if not peers or each in peers or each.partition("@")[0] in peers]
        if not taking:
            parser.error(f"none of --peers can do {name}; those that can are {', '.join(contest.names)}")
        entry = {
            "name": label,
            "workload": name,
            "title": workload.title,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "command": " ".join(["python -m benchmarks.run", *(sys.argv[1:] if argv is None else argv)]),
            "commit": commit(),
            "machine": machine(),
        }

        def keep(number: int, figures: Figures) -> None:
            # After every round, so that one that is interrupted leaves those before it.
            add(output, entry | {"rounds": number, "contestants": figures})  # noqa: B023 - called in this turn

        found = hold(contest, taking, given.rounds, tell, keep)
        print(report.table({"contestants": found}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
