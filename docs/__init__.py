"""Pages about the program; `python -m docs.generate` writes those that the program says itself."""
