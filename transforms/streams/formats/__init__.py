"""The formats of messages: a module each, with its decoder. Which columns there are is settled in `settle`."""
