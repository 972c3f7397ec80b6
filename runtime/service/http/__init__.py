"""The HTTP side: an OpenAI-compatible API in a process of its own, beside the controller."""
