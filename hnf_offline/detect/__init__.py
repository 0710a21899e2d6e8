"""Detection: loss spikes, change-points, growth, alarms, regimes, pathologies. Never torch."""
