"""What tests grant to a busy machine.

WAIT_SECONDS is how long they wait for what takes seconds on an idle one: only what never happens may reach it. Machines with
a load of 14 needed two minutes for the start of a program. A test has ten minutes in all (`timeout`).
"""

WAIT_SECONDS = 300.0


def said(err: str) -> list[str]:
    """The lines of a command on stderr, without those of progress, which come every 15 seconds."""
    return [line for line in err.splitlines() if not line.startswith("scoring: ")]
