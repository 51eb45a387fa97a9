"""OpenTelemetry traces, set up by its own variables. Where none asks for them, nothing of OpenTelemetry is imported.

collector     where spans go, by the variables
sending       makes the spans of this process, and sends them
propagation   the place in a trace that one process hands to the next
"""
