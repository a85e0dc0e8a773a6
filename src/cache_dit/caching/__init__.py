"""Caching of transformer blocks: maths, engine, model rows, and how they are put onto a model."""
