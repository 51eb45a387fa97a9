"""The models' files that a run reads."""

from __future__ import annotations

import asyncio
from pathlib import Path

from prefect import get_run_logger

from infra.settings import Settings
from tasks.models.catalogue import Catalogue, load_catalogue
from tasks.models.published_catalogue import in_use


def catalogue_folder(config: Settings, model: str = "") -> Path:
    """Their folder, which the run's log names with their digest, or with that of the `model` that it works on alone.

    Raises SpecError, SettingsError and StoreError.
    """
    used = in_use(config, model)
    get_run_logger().info("%s", used)
    return used.folder


async def current_catalogue(config: Settings) -> Catalogue:
    """All of them. Raises as `catalogue_folder` does."""
    return await asyncio.to_thread(lambda: load_catalogue(catalogue_folder(config)))
