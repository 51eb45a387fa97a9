"""The quality gate: questions with known answers, put to a candidate and to the live release.

`questions` has one question and the form of a set, `samples` reads what lm-evaluation-harness writes, `scoring` says
whether an answer is right, `asking` puts the questions, and `gate` makes evidence of it. Begin with `gate`.

`questions.jsonl` was written for Enginehouse and is dedicated to the public domain (CC0 1.0). A model of 135 million
weights answers a part of its questions: they have room to fall and to rise.
"""
