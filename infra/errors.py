"""Every error that Enginehouse raises on purpose, in one tree.

    EnginehouseError
    ├── UsageError            the caller asked for something that cannot be: exit code 2
    │   ├── SpecError         a model's file, with file, line and field
    │   ├── SourceError       a source that is malformed, missing, gated or not allowed
    │   │   └── UntrustedFile a file that the Trust rules refuse
    │   ├── EventRefused      a fine-tuning event that says what it may not, or says nothing
    │   ├── TemplateError     Triton templates that are missing, or cannot be filled with what was asked
    │   └── SettingsError     a setting or a program that is missing on this machine
    ├── StoreError            the object store said no, or nothing
    │   ├── StoreUnavailable  it may say yes later (retryable)
    │   ├── PreconditionFailed  a conditional write lost its race
    │   ├── StoreContended    conditional writes of one key lost their race again and again (retryable)
    │   ├── ArtifactDamaged   bytes or records, in the store or on a disk, are not what their manifest says
    │   ├── SignatureRefused  an artifact or an intent that is not signed with a key that was configured
    │   └── FormatNewer       a record that a later Enginehouse wrote in a form this one does not know
    ├── SourceUnavailable     the hub or the index did not answer (retryable)
    ├── StepFailed            a step ran and failed
    ├── TritonError           Triton or a node refused or did not answer
    ├── GatewayError          the gateway does not have a client's request answered
    ├── GateRefused           a candidate did not pass its gates: exit code 3
    └── GateUndecided         its gates could not decide, or may not, and a person has to: exit code 4

Each carries a stable `code`, the message, a `hint` (what to do next) and `retryable`: whether the same
call, unchanged, may succeed later. Task retries ask exactly that.
"""

from __future__ import annotations


class EnginehouseError(Exception):
    """Base of the tree. `message` says what happened, `hint` what to do about it."""

    code = "error"
    retryable = False
    exit_code = 1

    def __init__(self, message: str, *, hint: str = "", code: str | None = None, retryable: bool | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if code is not None:
            self.code = code
        if retryable is not None:
            self.retryable = retryable

    def __str__(self) -> str:
        return f"{self.message} [{self.code}]"


class UsageError(EnginehouseError):
    code = "usage"
    exit_code = 2


class SpecError(UsageError):
    code = "spec-invalid"


class SourceError(UsageError):
    code = "source-invalid"


class UntrustedFile(SourceError):
    code = "untrusted-file"


class EventRefused(UsageError):
    code = "event-malformed"


class TemplateError(UsageError):
    code = "template-invalid"


class SettingsError(UsageError):
    code = "settings"


class StoreError(EnginehouseError):
    code = "store"


class StoreUnavailable(StoreError):
    code = "store-unavailable"
    retryable = True


class PreconditionFailed(StoreError):
    code = "precondition-failed"


class StoreContended(StoreError):
    code = "store-contended"
    retryable = True


class ArtifactDamaged(StoreError):
    code = "artifact-damaged"


class SignatureRefused(StoreError):
    code = "signature-invalid"


class FormatNewer(StoreError):
    code = "format-newer"


class SourceUnavailable(EnginehouseError):
    code = "source-unavailable"
    retryable = True


class StepFailed(EnginehouseError):
    code = "step-failed"


class TritonError(EnginehouseError):
    code = "triton"


class GatewayError(EnginehouseError):
    """`retry_after_s`: in how many seconds the same request may be answered; None if nobody knows."""

    code = "gateway"

    def __init__(
        self,
        message: str,
        *,
        hint: str = "",
        code: str | None = None,
        retryable: bool | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message, hint=hint, code=code, retryable=retryable)
        self.retry_after_s = retry_after_s


class GateRefused(EnginehouseError):
    code = "gate-refused"
    exit_code = 3


class GateUndecided(EnginehouseError):
    code = "gate-undecided"
    exit_code = 4
