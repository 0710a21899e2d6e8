"""Two small, really trained runs of the same model: one that spikes, one that does not."""
