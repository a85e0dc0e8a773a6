"""What is known of diffusers' transformers, as rows of data."""
