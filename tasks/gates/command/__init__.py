"""The command gate: a program of one's own asks the candidate, and says what it found as JSON.

`output` is the form of what it says, and `gate` runs it. Begin with `gate`.
"""
