"""Samples: the matrix of an experiment, the workers that fill it, and what each sample records."""
