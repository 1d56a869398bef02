"""The HTTP side: OpenAI's images endpoint with strength and guidance, what is served, and a page with base and champion side by side."""

from __future__ import annotations

import base64
import io
import time
from importlib.resources import files
from typing import Annotated, Literal

import numpy as np
from fastapi import FastAPI, HTTPException
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, ConfigDict, Field

from marble_core.serving.follower import Follower
from marble_core.serving.served import SEEDS
from marble_core.types import MarbleError

MOST_IMAGES, LONGEST_PROMPT = 8, 4000


class ImagesRequest(BaseModel):
    """The body of POST /v1/images/generations: OpenAI's fields, and ours (seed, strength, guidance)."""

    model_config = ConfigDict(extra="forbid")

    prompt: str = Field(min_length=1, max_length=LONGEST_PROMPT)
    model: str = Field("champion", pattern=r"^(champion|previous|base|\d+)$")
    n: int = Field(1, ge=1, le=MOST_IMAGES)
    size: str | None = Field(None, pattern=r"^\d+x\d+$")
    response_format: Literal["b64_json"] = "b64_json"
    user: str | None = None  # OpenAI's; not used
    seed: Annotated[int, Field(ge=0, lt=SEEDS)] | None = None
    strength: float = Field(1.0, ge=0, le=2)
    guidance: float = Field(1.0, ge=1, le=20)


class Image(BaseModel):
    b64_json: str
    seed: int


class ImagesResponse(BaseModel):
    created: int
    model: str
    data: list[Image]


def make_app(follower: Follower) -> FastAPI:
    """The application that serves what ``follower`` follows."""
    served = follower.served
    size = f"{served.config.model.width}x{served.config.model.height}"
    app = FastAPI(title="MARBLE", docs_url="/docs", redoc_url=None)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    def page() -> str:
        return files("marble_core.serving").joinpath("page.html").read_text(encoding="utf-8")

    @app.get("/healthz")
    def healthz() -> dict[str, str]:
        """For a probe: the model is loaded. A registry that does not answer is said, and is no reason to restart."""
        return {"status": "ok", "trouble": follower.trouble}

    @app.get("/v1/models")
    def models() -> dict[str, object]:
        """What can be asked for: champion and previous by version (null: none), the image size, why there is no guidance."""
        return {
            "registered_model": served.config.registry.model,
            "champion": served.version,
            "previous": served.previous,
            "base": served.config.model.path,
            "size": size,
            "no_guidance": served.no_guidance,
        }

    @app.post("/v1/images/generations")
    def generate(request: ImagesRequest) -> ImagesResponse:
        if request.size not in (None, size):
            raise HTTPException(400, f"size {request.size} is not served: this model draws {size}.")
        version = {"champion": served.version, "previous": served.previous, "base": None}.get(request.model, request.model)
        if version is None and request.model != "base":
            raise HTTPException(404, f"There is no {request.model} of {served.config.registry.model}; ask for base.")
        try:
            drawn = served.draw(request.prompt, request.n, request.seed, version, request.strength, request.guidance)
        except MarbleError as error:
            raise HTTPException(400, str(error)) from None
        data = [Image(b64_json=_png(image), seed=seed) for image, seed in zip(drawn.images_NHWC, drawn.seeds, strict=True)]
        return ImagesResponse(created=int(time.time()), model=drawn.version or "base", data=data)

    return app


def _png(image_HWC: np.ndarray) -> str:
    import PIL.Image

    out = io.BytesIO()
    PIL.Image.fromarray(image_HWC).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode("ascii")
