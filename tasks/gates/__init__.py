"""What a candidate must prove before traffic moves to it.

It imports `tasks.models` and what is below; `steps` and `explain` may import it. Begin with `protocol`: a gate
measures, and gives evidence. `choice` has the gates, one module each. `judge` makes verdicts of the evidence of all
gates of one rollout. Their tests and bounds need numpy and the standard library alone: `proportions`, `paired`,
`sequential` and `holm`.
"""
