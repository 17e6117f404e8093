"""Reports as one HTML file each, which needs no network."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytl.extras import require


def render(package: str, template: str, images: Mapping[str, Path], **values: Any) -> bytes:
    """The page of a package's template, which extends ``page.html``; `images`, by name, are put into it."""
    jinja = require("jinja2", "cli")
    loader = jinja.ChoiceLoader([jinja.PackageLoader(package), jinja.PackageLoader("pytl")])
    environment = jinja.Environment(loader=loader, autoescape=True, trim_blocks=True)
    inside = {name: base64.b64encode(path.read_bytes()).decode() for name, path in images.items()}
    return bytes(environment.get_template(template).render(images=inside, **values).encode())
