"""Puts the engine onto one model instance, and takes it off again without a trace."""
