"""The names of a text model's weights, alone or as a part of a multimodal model.

The same matrix is `model.layers.0…` in a text model, `language_model.model.layers.0…` in the files of most multimodal
models, `model.language_model.layers.0…` in transformers since 4.52, where adapters are trained (`conversion_mapping.py`
turns one into the other), and `layers.0…` in a model without a head. The other parts differ likewise:
`vision_tower…` is `model.vision_tower…`.
"""

from __future__ import annotations

import re


def short_name(name: str) -> str:
    """The part of a name that all forms share: `layers.0…`, `embed_tokens…`, `lm_head…`, `vision_tower…`."""
    return re.sub(r"^(?:(?:model|language_model)\.)+", "", name)
