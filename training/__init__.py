"""Makes the weights of the embedded prior: data, training, evaluation and export (see README.md)."""
