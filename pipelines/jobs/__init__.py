"""The jobs behind the commands: options → settled job → pipeline → run.

May import: `command`, `runners`, `spark`, `dataflow`.
"""
