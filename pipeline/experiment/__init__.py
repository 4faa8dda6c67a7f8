"""The paper's experiments: sets of runs, and the figures and tables drawn from them."""
