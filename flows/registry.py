"""Tell the MLflow registry what is public: after a promotion, and again when it was missed."""

from __future__ import annotations

import asyncio

from prefect import get_run_logger
from pydantic import ValidationError

from infra import settings
from infra.errors import EnginehouseError
from tasks.models.spec import Model
from tasks.steps.register import register_public
from tasks.targets.target import Target


async def register(target: Target, model: Model) -> None:
    """Register what is public on a target, if the model's file asks for that.

    A registry that is away stops nothing: it is said, and `reconcile` makes up for it.
    """
    if model.mlflow is None:
        return
    try:
        done = await asyncio.to_thread(register_public, target, model, settings.load().mlflow)
    except (EnginehouseError, ValidationError) as error:
        get_run_logger().warning("%s on '%s' is not registered with MLflow: %s", model.name, target.name, error)
    else:
        if done is not None:
            get_run_logger().info("%s", done)
