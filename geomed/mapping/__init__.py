"""Many scenes, one model: `geomed map`, and the models that it reads."""
