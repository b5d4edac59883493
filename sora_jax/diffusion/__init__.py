"""Noise and its removal: flow (equations), canvas (prompting), sampler (guidance and solvers)."""
