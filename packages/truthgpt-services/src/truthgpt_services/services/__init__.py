"""The services that commands and programs use."""
