"""kfp's client, made to answer at once and in one sentence: whoever asks has no minute to spare, and a script reads exit codes.

Three things of it are replaced: a server that is away is asked once and not five times, every request has a time limit, and
an answer that is no JSON (a login page, some other server) is an error and not an empty object.
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kfp
import kfp.client
import urllib3
from kfp_server_api import ApiException, Configuration
from kfp_server_api.rest import RESTClientObject

from marble_core.types import MarbleError

IN_CLUSTER = "http://ml-pipeline.kubeflow.svc.cluster.local:8888"
CONNECT_SECONDS = 5.0
TOKEN = "KF_PIPELINES_TOKEN"  # kfp has no variable for a token itself; the other names are its own
TOKEN_FILE = kfp.client.KF_PIPELINES_SA_TOKEN_ENV
PROJECTED_TOKEN = Path(kfp.client.KF_PIPELINES_SA_TOKEN_PATH)
AUDIENCE = "pipelines.kubeflow.org"  # what Kubeflow Pipelines asks of a token, and the PodDefault's token is for
MAKE_ONE = f"kubectl -n NAMESPACE create token default-editor --audience {AUDIENCE}"
LOGINS = ("/dex/", "/oauth2/")  # of Kubeflow's own gateway


@dataclass(frozen=True)
class Target:
    """Where Kubeflow Pipelines is, and who asks. Empty: what kfp finds (the pod's own cluster, or ~/.kube/config)."""

    host: str = ""
    namespace: str = ""
    token_file: Path | None = None
    ca: Path | None = None
    seconds: float = 30.0  # for one answer

    @property
    def url(self) -> str:
        """The address; of a pod without one, the cluster's own. Empty: the cluster of ~/.kube/config."""
        if self.host:
            url = self.host.rstrip("/") if "://" in self.host else f"https://{self.host.rstrip('/')}"
            try:
                parts = urlsplit(url)
                sound = parts.scheme in ("http", "https") and parts.hostname and (parts.port is None or parts.port > 0)
            except ValueError:
                sound = False
            if not sound or not url.isascii() or " " in url:
                raise MarbleError("The address of Kubeflow Pipelines must be like http://localhost:8888: correct --host.")
            return url
        return IN_CLUSTER if "KUBERNETES_SERVICE_HOST" in os.environ else ""

    def renewed_token_file(self) -> Path | None:
        """The file that holds the token, read again before each request, since the kubelet renews it."""
        if os.environ.get(TOKEN):
            return None
        return self.token_file or (PROJECTED_TOKEN if PROJECTED_TOKEN.exists() else None)

    def token(self) -> str:
        """Empty where there is none. Raises MarbleError where its file cannot be read."""
        file = self.renewed_token_file()
        return _text_of(file, "token file") if file else os.environ.get(TOKEN, "").strip()

    @property
    def shown(self) -> str:
        """The address without a password that may stand in it."""
        parts = urlsplit(self.url)
        return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() or "the cluster of your kubeconfig"

    def run_page(self, run: str, pages: str = "") -> str:
        """The address of a run's page in Kubeflow: at ``pages``, as the settings name them, else at the address given; or empty."""
        given = "" if ".svc" in self.shown or "://" not in self.shown else f"{self.shown}/"
        return f"{pages or given}#/runs/details/{run}" if pages or given else ""


class Unreachable(MarbleError):
    """The server is away or in trouble: asking again later may help."""


class _NotTheApi(Exception):
    """Something answered, and it was no JSON: ``url``, after all redirections."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url


class _Requests(RESTClientObject):
    def __init__(self, configuration: Configuration, seconds: float) -> None:
        configuration.retries = urllib3.Retry(connect=0, read=0, status=0, redirect=5, other=0)
        super().__init__(configuration)
        self._limits = (CONNECT_SECONDS, seconds)

    def request(self, *arguments: Any, **named: Any) -> Any:
        try:
            response = super().request(*arguments, **{**named, "_request_timeout": self._limits})
        except ApiException as error:
            error.body = (error.body or b"").decode(errors="replace").encode()  # kfp decodes it again, and strictly
            raise
        try:
            json.loads(response.data or b"{}")
        except ValueError:
            raise _NotTheApi(response.urllib3_response.geturl() or "") from None
        return response


class _Client(kfp.Client):
    def __init__(self, target: Target, **named: Any) -> None:
        self._seconds = target.seconds
        super().__init__(target.url or None, **named)
        if target.namespace:
            self.set_user_namespace(target.namespace)

    def get_kfp_healthz(self, sleep_duration: int = 0) -> Any:
        """Whether it answers, asked once. The constructor calls this before it asks for anything else."""
        api = self._healthz_api.api_client
        api.rest_client = _Requests(self._existing_config, self._seconds)
        return self._healthz_api.healthz_service_get_healthz()

    def set_user_namespace(self, namespace: str) -> None:
        """For this process alone: kfp's own writes to the home directory, which a pod may not have."""
        self._context_setting["namespace"] = namespace.strip()


def connect(target: Target) -> kfp.Client:
    """A client whose server has answered. Raises MarbleError where it does not, or where nothing says which one it is."""
    if target.ca:
        _text_of(target.ca, "file of certificates")
    token = target.token()
    if not target.url and (token or not _has_kubeconfig()):
        raise MarbleError(
            "Nothing says where Kubeflow Pipelines is: give --host or KF_PIPELINES_ENDPOINT, for example "
            "http://localhost:8888 after 'kubectl -n kubeflow port-forward svc/ml-pipeline 8888'."
        )
    named: dict[str, Any] = {"ssl_ca_cert": str(target.ca)} if target.ca else {}
    if file := target.renewed_token_file():
        named["credentials"] = kfp.client.ServiceAccountTokenVolumeCredentials(str(file))
    else:
        named["existing_token"] = token
    with warnings.catch_warnings(), spoken(target):
        warnings.simplefilter("ignore")
        client = _Client(target, **named)
        if client.get_kfp_healthz().multi_user and not client.get_user_namespace():
            raise MarbleError(
                f"{target.shown} has a namespace for each user: give yours, which is your profile's name, by --namespace or "
                "KF_PIPELINES_NAMESPACE."
            )
    return client


def _text_of(path: Path, what: str) -> str:
    try:
        return path.read_text(errors="replace", encoding="utf-8").strip()
    except OSError as error:
        raise MarbleError(f"The {what} {str(path)!r} cannot be read: {error.strerror}.") from None


def _has_kubeconfig() -> bool:
    places = os.environ.get("KUBECONFIG", "~/.kube/config").split(os.pathsep)
    return any(Path(place).expanduser().is_file() for place in places if place)


@contextmanager
def spoken(target: Target) -> Iterator[None]:
    """Within it what the server refuses, and what keeps us from it, is a MarbleError; kfp prints no links of its own."""
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    except ApiException as error:
        kind = Unreachable if (error.status or 0) >= 500 else MarbleError
        raise kind(_refusal(error, target)) from None
    except _NotTheApi as error:
        raise MarbleError(_page(error.url, target)) from None
    except urllib3.exceptions.HTTPError as error:
        raise Unreachable(f"Kubeflow Pipelines at {target.shown} cannot be reached: {_reason(error, target)}.") from None


def _reason(error: urllib3.exceptions.HTTPError, target: Target) -> str:
    cause = getattr(error, "reason", None) or error
    match type(cause).__name__:
        case "NameResolutionError":
            return "its name is unknown; correct --host or KF_PIPELINES_ENDPOINT"
        case "ConnectTimeoutError":
            return f"no connection within {CONNECT_SECONDS:g} s; correct --host, or let the network through"
        case "ReadTimeoutError":
            return f"no answer within {target.seconds:g} s; try again, or with a larger --request-timeout"
        case "SSLError":
            return "its certificate is not trusted, or it speaks no TLS; give its certificates by --ca, or http:// in --host"
        case "NewConnectionError":
            return "nobody listens there; correct --host, or start the port-forward again"
    return _line(str(cause)) or type(cause).__name__


def _page(url: str, target: Target) -> str:
    if any(login in url for login in LOGINS):
        return f"{target.shown} has a login page in front (Dex or oauth2-proxy), which a token passes: {_token_wanted(target)}."
    return (
        f"{target.shown} answers with a page and not with Kubeflow Pipelines' API. Correct the address: Kubeflow's own ends with "
        f"/pipeline. Where it wants a login, put a token in {TOKEN}."
    )


def _token_wanted(target: Target) -> str:
    """What to do about a token that is missing, or that was not taken."""
    file = target.renewed_token_file()
    held = f"the token in {file or TOKEN}"
    if not (token := target.token()):
        if "KUBERNETES_SERVICE_HOST" in os.environ:
            return (
                "this pod has none: give the notebook the configuration 'Allow access to Kubeflow Pipelines' (a PodDefault), "
                f"or put one in {TOKEN}"
            )
        return f"put one in {TOKEN} or name its file by --token-file; {MAKE_ONE} makes one"
    claims = _claims(token)
    if isinstance(ends := claims.get("exp"), (int, float)) and ends < time.time():
        return f"{held} expired at {datetime.fromtimestamp(ends, UTC):%Y-%m-%d %H:%M} UTC; {MAKE_ONE} makes one"
    audience = claims.get("aud", [])
    if audience and AUDIENCE not in (audience if isinstance(audience, list) else [audience]):
        return f"{held} is for {_line(', '.join(map(str, audience)) if isinstance(audience, list) else str(audience))}; {MAKE_ONE} makes one"
    return f"{held} was not taken: another cluster has made it, or it has been revoked; {MAKE_ONE} makes one"


def _claims(token: str) -> dict[str, Any]:
    """What a JSON Web Token says of itself, unverified; nothing where it is none."""
    try:
        body = token.split(".")[1]
        claims = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    except (ValueError, IndexError):
        return {}
    return claims if isinstance(claims, dict) else {}


def _refusal(error: ApiException, target: Target) -> str:
    told = _told(error, target)
    said, where = f" ({told})" if told else "", target.shown
    match error.status:
        case 401:
            return f"{where} does not know you (401), for it asks for a token: {_token_wanted(target)}."
        case 403:
            return (
                f"{where} does not let you do this (403){said}: ask for the role kubeflow-edit there, or correct --namespace."
            )
        case 404 if told in ("", "Not Found"):
            return f"{where} has no API of Kubeflow Pipelines (404): correct the path in --host."
        case 404:
            return f"{where} does not have what was asked for (404){said}: marble runs list says what there is."
        case 409:
            return f"{where} has something of that name already (409){said}: choose another name."
        case int(status) if status >= 500:
            return f"{where} is in trouble ({status}){said}: try again in a minute."
        case status:
            return f"{where} refuses the request ({status}){said}: correct what it names."


def _told(error: ApiException, target: Target) -> str:
    """What the server says, on one line, without the token, which a proxy may repeat."""
    try:
        answer = json.loads(error.body or "")
        text = str(answer.get("message") or answer.get("error") or "")
    except (ValueError, AttributeError):
        return ""
    token = target.token()
    return _line(text.replace(token, "...") if token else text)


def _line(text: str) -> str:
    line = " ".join(text.split()).rstrip(".")
    return line if len(line) <= 300 else f"{line[:300]}..."
