"""TensorRT-LLM, whichever version: recipes, what its tools take, the commands that come of both."""
