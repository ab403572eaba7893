"""How the weights of the embedded prior are made: data, training, evaluation, export (see README.md)."""
