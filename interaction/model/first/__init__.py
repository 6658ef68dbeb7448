"""The transformer of the pair of models that was released first: RoPE, attention sinks, rings."""
