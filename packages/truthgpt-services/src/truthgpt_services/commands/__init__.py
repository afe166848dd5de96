"""The subcommands of truthgpt; nothing here imports torch before work starts."""
