"""How to build the module that the checkpoints belong to, and what its layers are called."""
