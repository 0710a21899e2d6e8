"""Policies: what a retraining may do otherwise, one small file each."""
