"""The sources of texts that come with TruthGPT."""
