"""The images' names, in one place for whoever builds them (images/build.py), compiles them into a pipeline or lists them for a release.

It imports nothing, so that images are built without an environment. The chart names the command line's image in its values.
"""

IMAGES = ("prepare", "register", "train", "evaluate", "cli")  # one for each stage, and the command line's


def reference(image: str, registry: str = "", tag: str = "", digest: str = "") -> str:
    """``registry/marble-IMAGE:tag``, or with the digest, which wins; without a registry the engine's own."""
    name = "/".join(filter(None, (registry.rstrip("/"), f"marble-{image}")))
    return f"{name}@{digest}" if digest else f"{name}:{tag}"
