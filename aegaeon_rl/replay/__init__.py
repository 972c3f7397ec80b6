"""Open-loop load from a trace against any OpenAI endpoint, and what came back."""
