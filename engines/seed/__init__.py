"""The seed model: a small Qwen3 checkpoint that the project trains itself, and the recipe that rebuilds it."""
