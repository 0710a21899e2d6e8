"""The prediction study: does curvature announce loss spikes, where, and against which chance?"""
