"""The pipeline side: sources, sinks, `Score`, dead letters and accounts."""
