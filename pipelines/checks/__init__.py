"""What `doctor` checks. May import: every other room of `pipelines`; `spark` reports its own checks through `checkup`."""
