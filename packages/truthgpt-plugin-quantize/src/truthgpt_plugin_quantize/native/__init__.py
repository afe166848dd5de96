"""Decoding on a CPU in one call of compiled C++ per token.

`decode.cpp` is the code, `library.py` compiles it for this machine and keeps it, `step.py`
decides which models it can do and prepares one.
"""
