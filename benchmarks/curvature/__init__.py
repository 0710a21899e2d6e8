"""What every layer's curvature costs, and how wrong it is, beside published tools: `python -m benchmarks.curvature`."""
