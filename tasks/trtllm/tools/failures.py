"""Why one of TensorRT-LLM's tools failed: one named error, with a hint, for each known failure.

The tools end with a traceback, with a message of argparse, or killed by the kernel. Each error says whether the same
call can succeed later. A tool that ran out of memory is never tried again unchanged.
"""

from __future__ import annotations

import signal

from infra.errors import StepFailed
from infra.processes.child import Outcome
from tasks.trtllm.known_failures import Failure, first_known

# The first match counts, so the particular comes before the general.
FAILURES = (
    Failure(
        "arguments-unrecognized",
        r"error: (unrecognized arguments: .+|argument .+: (?:invalid|expected) .+"
        r"|the following arguments are required: .+)",
        "the tool does not take its arguments: {0}",
        "the toolchain holds another TensorRT-LLM than it reports, or `extra_args` has an option that it lacks",
    ),
    Failure(
        "lfs-pointer",
        r"(HeaderTooLarge|HeaderTooSmall|InvalidHeaderLength|header too (?:large|small)|invalid load key, 'v')",
        "the files of the weights hold no weights: {0}",
        "Git LFS pointers look like this: run `git lfs pull` where the source was made",
    ),
    Failure(
        "gpu-memory",
        r"((?:torch\.)?(?:cuda\.)?OutOfMemoryError: .+|CUDA out of memory.*|Requested amount of GPU memory.*"
        r"|Error Code \d+: (?:OutOfMemory|Out of memory).*|cudaErrorMemoryAllocation.*)",
        "the GPU has too little memory: {0}",
        "lower max_batch_size or max_num_tokens, raise tp_size, or build on a larger or an emptier GPU",
    ),
    Failure(
        "host-memory",
        # A worker that the system kills breaks its pool, and the tool then ends without a signal.
        r"(MemoryError.*|std::bad_alloc.*|Cannot allocate memory.*|DefaultCPUAllocator: can't allocate memory.*"
        r"|BrokenProcessPool.*)",
        "the machine has too little memory: {0}",
        "give the worker more memory, or convert with a smaller tp_size on a larger one",
    ),
    Failure(
        "architecture-wrong",
        r"(generated on an incompatible device, expecting compute .+|no kernel image is available.*"
        r"|not supported on SM.*)",
        "this GPU is of another architecture: {0}",
        "build on a worker of the pool for the recipe's architecture",
    ),
    Failure(
        "version-mismatch",
        r"(not compatible with this version of TensorRT.*|Version tag does not match.*|undefined symbol: .+"
        r"|CUDA driver version is insufficient.*)",
        "versions in the toolchain do not fit: {0}",
        "TensorRT, TensorRT-LLM and the driver must come from one image; `python -m infra.gpu` shows the driver",
    ),
    Failure(
        "world-size",
        r"((?:world_size must equal|Engine world size|mpiSize == tp|MPI size \d+ != TP).*|assert rank < .*world_size.*"
        r"|tp_size must equal to moe_tp_size.*)",
        "the number of processes does not fit the recipe: {0}",
        "tp_size x pp_size x cp_size must be the number of ranks, and each needs a GPU",
    ),
    Failure(
        "module-missing",
        # Converters of some models import what TensorRT-LLM itself does not need: Gemma's up to 0.12 flax.
        r"(ModuleNotFoundError: No module named '(?!tensorrt_llm|tensorrt|torch).+')",
        "the script needs a Python package that the toolchain lacks: {0}",
        "install the requirements.txt that lies beside the script into the toolchain",
    ),
    Failure(
        "script-mismatch",
        r"((?:ImportError: cannot import name|ModuleNotFoundError: No module named"
        r"|AttributeError: (?:module|type object)|TypeError: .*unexpected keyword argument) ?.*)",
        "the script does not fit the installed TensorRT-LLM: {0}",
        "set ENGINEHOUSE_TOOLCHAIN_EXAMPLES to the examples folder of a checkout of exactly that version",
    ),
    Failure(
        "template-unfilled",
        r"(Expected integer or identifier, got: \$.*|[^\n]*\$\{[a-z_]+\}[^\n]*)",
        "a placeholder was left unfilled: {0}",
        "every `${{…}}` of a template needs a value",
    ),
    Failure(
        "format-unsupported",
        r"(Unsupported (?:quantization format|model architecture|dataset name or local repo directory): .+)",
        "this version cannot do that: {0}",
        "choose another quantization, model or calibration set in the model's file",
    ),
    Failure(
        "hub-offline",
        r"((?:OfflineModeIsEnabled|LocalEntryNotFoundError|ConnectionError: Couldn't reach).*)",
        "the tool wanted something from the hub: {0}",
        "toolchains have no network: put the set on the worker, and its folder into the recipe's calibration.dataset",
    ),
    Failure(
        "disk-full",
        r"(No space left on device.*)",
        "the disk is full: {0}",
        "free space in ENGINEHOUSE_HOME of the worker, then run the rebuild again",
        retryable=True,
    ),
)


def known_failure(tool: str, output: str) -> StepFailed | None:
    """The error for the first known failure in the end of a tool's output. Returns None if there is none."""
    if (known := first_known(FAILURES, output)) is None:
        return None
    failure, text = known
    return StepFailed(
        f"{tool}: {failure.message.format(text)}",
        hint=failure.hint.format(),
        code=failure.code,
        retryable=failure.retryable,
    )


def require_success(tool: str, outcome: Outcome) -> None:
    """Raise StepFailed unless the tool ended well: with the code of the failure, `tool-failed` for an unknown one."""
    if outcome.exit_code == 0:
        return
    if (known := known_failure(tool, outcome.tail)) is not None:
        raise known
    if outcome.exit_code == -signal.SIGKILL:
        raise StepFailed(
            f"{tool} was killed, as the system does when memory runs out; it held "
            f"{outcome.peak_host_bytes / 2**30:.1f} GiB when last seen",
            hint="give the worker more memory; `dmesg` on it shows whether that was the reason",
            code="host-memory",
        )
    how = f"signal {-outcome.exit_code}" if outcome.exit_code < 0 else f"exit status {outcome.exit_code}"
    lines = outcome.tail.strip().splitlines()[-8:]
    raise StepFailed(f"{tool} ended with {how}", hint="its last lines:\n" + "\n".join(lines), code="tool-failed")
