"""Model refresh: where the newest model is, and exchanging the model in memory for it while rows are scored.

What belongs here: code that looks at a location (a pattern, a pointer file, a name in a registry) and the thread that
does so. How a model is loaded and tried is given to it. May import: `model`, and the modules at the top of `handlers`.
"""
