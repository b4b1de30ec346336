"""The Flex Template `stream`: the launcher runs this file as a script, with the parameters as `--name=value`.

Only this folder is on `sys.path` then, so that the package must be installed.
"""

import sys

from pipelines.command import process
from pipelines.stream import PROG, main

if __name__ == "__main__":
    process.run(lambda: main(["--runner=DataflowRunner", *sys.argv[1:]]), PROG)
