"""Context parallelism: every process has a part of the sequence."""
