"""The gateway in front of a target's nodes. `openai/` translates between OpenAI's API and the serving contract."""
