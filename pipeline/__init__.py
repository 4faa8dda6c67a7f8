"""Train image classifiers: data order, loading, training, tracking and comparison."""
