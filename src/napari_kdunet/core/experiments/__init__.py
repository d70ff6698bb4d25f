"""Many trainings: the paper's studies and sweeps over k."""
