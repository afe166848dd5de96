"""The engine `openai`: models behind an OpenAI-compatible URL."""
