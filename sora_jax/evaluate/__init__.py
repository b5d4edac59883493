"""What the models can do, measured: world (the oracle's text fidelity), metrics."""
