"""Work pools of Docker and Kubernetes: the templates of their jobs, and the variables of one job.

`flows` and `deployments` import it. Begin with `templates.py`; the two YAML files are what it fills.
"""
