"""Matrix-free linear algebra: pure torch, with no idea what a run is."""
