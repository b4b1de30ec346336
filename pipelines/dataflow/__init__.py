"""Dataflow: settings of a launch, the wheel of the package, submitting and following a job. May import: `command`."""
