"""The agreement gate: whether a candidate goes on as the live release does, after the same beginnings of texts.

`passages` has the texts and where they are cut, `positions` asks both releases what comes next, `answers` lets both
answer the model's own prompts, and `gate` makes evidence of it. Begin with `gate`.

`passages.jsonl` was written for Enginehouse. Its 64 texts are dedicated to the public domain (CC0 1.0), so anybody may
use them for anything.
"""
