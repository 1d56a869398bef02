"""Private roots beside the public ones: the file that MARBLE_CA names is added to what every client of this process trusts.

boto3 (S3), requests (MLflow), and OpenSSL's own default (hub, https sources, Kubeflow, remote scorers) each read a variable of their
own, and each takes the file that it names *instead* of the public roots.
"""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from marble_core.runtime.environment import CA
from marble_core.runtime.scratch import file_of_this_process
from marble_core.types import MarbleError

READ_BY = ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE")


def trust_private_roots() -> None:
    """From now on this process and its children trust MARBLE_CA's roots too, beside the public ones, or beside those of a file that
    one of the variables names. Raises MarbleError for a file that holds no certificates."""
    path = os.environ.get(CA)
    if not path:
        return
    private = _certificates(path)
    made: dict[bytes, str] = {}
    for name in READ_BY:
        own = os.environ.get(name, "")
        if own in ("", path):
            before = _public()
        elif Path(own).is_file():
            before = Path(own).read_bytes()
        else:  # a directory, or nothing that is there: the user's own choice
            continue
        if private in before:  # our parent's
            continue
        whole = before.rstrip() + b"\n" + private
        made[whole] = made.get(whole) or str(file_of_this_process(whole))
        os.environ[name] = made[whole]


def _certificates(path: str) -> bytes:
    try:
        text = Path(path).read_bytes()
        ssl.create_default_context(cadata=text.decode())
    except OSError as error:  # ssl.SSLError is one
        reason = (
            error.strerror if error.errno and not isinstance(error, ssl.SSLError) else "it holds no certificate in PEM form"
        )
    except ValueError:
        reason = "it holds no certificate in PEM form"
    else:
        return text
    raise MarbleError(f"The certificates of {CA}, {path}, cannot be used: {reason}; give the file of your authority's roots.")


def _public() -> bytes:
    import certifi

    return Path(certifi.where()).read_bytes()
