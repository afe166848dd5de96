"""Files that survive crashes, and that several processes may use at once."""
