"""TruthGPT inference engine: compiled code for CPUs."""
