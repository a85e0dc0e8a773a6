"""The engine: streams, segments, clock, requests and records. Knows torch and no model."""
