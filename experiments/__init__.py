"""Commands: train, converse, evaluate, benchmarks; `configs` has a file for each run."""
