"""What is run: train, converse, evaluate, benches; one config file a run."""
