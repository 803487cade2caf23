"""Before the cluster is asked: does a training fit, how long will it take, does the trainer take it."""
