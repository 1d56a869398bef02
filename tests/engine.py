"""The images, and programs in them."""

import subprocess

TAG = "tested"
STAGES = ("prepare", "register", "train", "evaluate")
# In the environment and in pip's settings of the build; they must be in no image.
MARKS = {"HF_TOKEN": "hf_MarkedTokenOfTheBuild", "PIP_TRUSTED_HOST": "marked-host-of-the-build"}


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def in_image(image: str, script: str) -> str:
    """What a Python program says in a container that has nothing but a read-only root and a place to write."""
    options = ["--rm", "--network=none", "--read-only", "--tmpfs=/scratch:mode=1777", "--user=12345:12345"]
    return docker("run", *options, image, "python3", "-c", script)
