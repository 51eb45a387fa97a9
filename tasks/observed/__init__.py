"""What clients see of a release: reading it from all nodes, and judging it against another release or another time.

`tally` adds up what the live nodes of a target count, `evidence` compares two releases at the same time (a canary) or
one with what another showed before (the watch after a promotion), and `probes` asks both where clients ask too little.
`memory` says whether what the processes of a release hold keeps growing.
"""
