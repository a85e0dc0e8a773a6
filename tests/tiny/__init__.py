"""Random-weight models and pipelines of diffusers, small enough to run whole in tests."""
