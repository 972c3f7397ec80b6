"""Known formats of traces, a file each; `registry` lists them."""
