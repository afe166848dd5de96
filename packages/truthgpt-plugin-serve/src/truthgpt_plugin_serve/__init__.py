"""An OpenAI-compatible server for the models that TruthGPT runs."""
