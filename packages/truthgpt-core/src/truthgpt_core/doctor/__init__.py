"""What `truthgpt doctor` looks at, a room for each.

The process that a person starts looks at the machine, this Python, compilers and settings
(`machine`, `limits`, `interpreter`, `compilers`, `settings`). Whatever can crash, hang or
print runs in a process of its own: `torch_probe`, `plugin_probe` and `config_probe` are
what runs there, `probing` is how they answer, and `children` starts them and says what
became of them. `examination` puts it all in order.

Nothing here imports torch when it is imported.
"""
