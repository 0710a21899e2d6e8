"""Suffix replay: what a changed layer changes starts at its block, so that is where the forward pass starts again.

The blocks before are replaced by what they gave (`blocks`, `restart`); the changed copies of a block's layers go on
together, one after another on the batch axis (`products`).
"""
