"""Running models: decoding, and the service around it."""
