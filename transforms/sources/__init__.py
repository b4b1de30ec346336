"""Sources: from files to chunks, with every row accounted for."""

from transforms.sources.blocks import Split
from transforms.sources.files import InputFile, find_files
from transforms.sources.planning import Input, plan_input
from transforms.sources.read import Read, ReadChunks
from transforms.sources.splits import BadRows, FileRead, read_split

__all__ = [
    "BadRows",
    "FileRead",
    "Input",
    "InputFile",
    "Read",
    "ReadChunks",
    "Split",
    "find_files",
    "plan_input",
    "read_split",
]
