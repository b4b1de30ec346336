"""The command line: flags, exit codes, signals, progress. What every command shares; imports neither torch nor Beam.

(`watch`, `ignored` and `sampling` are the exceptions, and are imported once a run is prepared.)
May import: no other room of `pipelines`.
"""
