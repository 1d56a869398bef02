"""What S3 servers answer, as one sentence with what to do: the reason first, then the permission, setting or variable it is about."""

from __future__ import annotations

from boto3.exceptions import Boto3Error
from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError, SSLError

from marble_core.types import MarbleError, Outage

MISSING = {"404", "NoSuchBucket", "NoSuchKey", "NotFound"}
TAKEN = {"412", "PreconditionFailed", "409", "ConditionalRequestConflict"}
_KEYS = {"403", "InvalidAccessKeyId", "SignatureDoesNotMatch", "Forbidden"}
_TOKEN = {"ExpiredToken", "ExpiredTokenException", "InvalidToken", "TokenRefreshRequired", "RequestExpired"}
_REGION = {
    "AuthorizationHeaderMalformed",
    "PermanentRedirect",
    "IllegalLocationConstraintException",
    "301",
    "InvalidRegionName",
}
_UNKNOWN = {"NotImplemented", "501", "MethodNotAllowed", "405"}
_LARGE = {"413", "EntityTooLarge", "MaxMessageLengthExceeded"}
PERMISSIONS = {
    "written": "s3:PutObject",
    "read": "s3:GetObject (and s3:ListBucket, without which what is not there yet reads as refused)",
    "listed": "s3:ListBucket",
    "deleted": "s3:DeleteObject",
}
_REASON = 400  # characters: what a checksum or a certificate is refused for stands at the end of long texts


class Refused(MarbleError):
    """The server has answered, and will answer the same again: to try it once more is of no use."""


def code_of(error: BaseException | None) -> str:
    """S3's error code, or the HTTP status of what stands before it; boto3's transfers hide it in the context of their own errors."""
    if isinstance(error, ClientError):
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", "")
        return str(error.response.get("Error", {}).get("Code") or status)
    return code_of(error.__context__) if isinstance(error, Boto3Error) else ""


def sentence(error: Exception, endpoint: str, place: str, bucket: str, done: str, key: bool, conditional: bool) -> MarbleError:
    """``place`` is the address of what was asked for, ``done`` one of PERMISSIONS or "reached"; ``key`` whether it is one object."""
    code, reason = code_of(error), " ".join(str(error).split()).rstrip(".")[:_REASON]
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return Refused(f"There are no S3 credentials for {endpoint}: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.")
    if code == "SecondLevelDomainForbidden" or "virtual hosted" in reason:
        return Refused(
            f"{endpoint} wants the bucket in the host's name ({reason}): set MARBLE_S3_ADDRESSING=virtual, see docs/storage.md."
        )
    if code == "AccessDenied" or (code == "403" and key):
        return Refused(
            f"{endpoint} refuses the keys for the S3 bucket {bucket!r}: {place} may not be {done} ({code}); they need "
            f"{PERMISSIONS.get(done, 's3:ListBucket')} there, see docs/storage.md."
        )
    if code in _KEYS:
        return Refused(
            f"{endpoint} refuses the keys for the S3 bucket {bucket!r} ({code}): "
            "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, and that they may use it."
        )
    if code in _TOKEN:
        return Refused(
            f"The credentials for the S3 bucket {bucket!r} on {endpoint} have expired ({code}): get new ones, and set AWS_SESSION_TOKEN "
            "with the two keys."
        )
    if code == "RequestTimeTooSkewed":
        return Refused(f"The clocks of this machine and of {endpoint} differ by too much ({code}): set this machine's (NTP).")
    if code in _REGION:
        return Refused(
            f"The S3 bucket {bucket!r} is in another region than {endpoint} was asked for ({reason}): set AWS_DEFAULT_REGION."
        )
    if code in MISSING and key:
        return MarbleError(f"There is no object {place} on {endpoint}: check its name.")
    if code in MISSING:
        return Refused(f"There is no S3 bucket {bucket!r} on {endpoint}: create it, or name another with storage.bucket.")
    if "checksum" in reason.lower() or "trailer" in reason.lower() or "aws-chunked" in reason.lower():
        return Refused(
            f"{endpoint} refuses boto3's checksums ({reason}): set AWS_REQUEST_CHECKSUM_CALCULATION=when_required and "
            "AWS_RESPONSE_CHECKSUM_VALIDATION=when_required."
        )
    if code in _UNKNOWN:
        what, said = "conditional writes (If-None-Match, If-Match), by which one process at a time owns a run", code
        if not conditional:
            what, said = f"a request by which {place} is {done}", reason
        return Refused(
            f"{endpoint} does not know {what} ({said}): use another S3 server or a newer version, see docs/storage.md."
        )
    if code in _LARGE:
        return Refused(
            f"{endpoint} takes no body of 8 MB, in which large files are sent ({code}): raise the limit of what stands before it "
            "(nginx: proxy-body-size)."
        )
    if isinstance(error, SSLError):
        return Refused(
            f"The certificate of {endpoint} is not trusted ({reason}): set MARBLE_CA to the file of its authority (PEM)."
        )
    return Outage(
        f"The S3 bucket {bucket!r} on {endpoint} cannot be {done} ({reason}): "
        "check AWS_ENDPOINT_URL and storage.bucket, and that the server answers."
    )
