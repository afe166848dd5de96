"""What `truthgpt doctor` looks at.

The process that the user starts looks at the machine and this Python (`machine`), the compiler
(`compilers`) and what the user has set (`settings`). Whatever can crash, hang or print runs in
processes of its own: `torch_probe` and `plugin_probe`. `examination` starts them, says what
became of them, and puts it all in order.

Nothing here imports torch when it is imported.
"""
