"""Where samples come from: sources, their transforms and the one data module."""
