"""Start the training: locally, on many nodes, on a cluster."""
