"""What a pool did when, read off its journal: spans, a decision log, a trace for Perfetto."""
