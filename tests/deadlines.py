"""How long tests wait for what takes seconds on an idle machine: only what never happens may reach it.

Machines with a load of 14 needed two minutes for the start of a program. A test has ten minutes in all (`timeout`).
"""

WAIT_SECONDS = 300.0
