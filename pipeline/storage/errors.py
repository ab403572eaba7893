"""Errors of a store: one line without secrets for each, and whether a retry can help."""

from __future__ import annotations

from typing import Literal

from pipeline.core.errors import LatentkilnError
from pipeline.storage.secrets import scrub


class StorageError(LatentkilnError):
    """A store refused an operation, or stayed unreachable until the deadline."""

    stage = "storage"

    def __init__(self, message: str, *, stage: str | None = None):
        super().__init__(scrub(message), stage=stage)


class PreconditionFailed(Exception):
    """A conditional write found other content than it expected, because another writer was first."""


ErrorKind = Literal["absent", "clash", "refused", "no-conditions", "passing"]

_TRANSIENT_CODES = {
    "RequestTimeout", "RequestTimeoutException", "SlowDown", "Throttling", "ThrottlingException", "TooManyRequests",
    "InternalError", "ServiceUnavailable", "OperationAborted", "ConditionalRequestConflict", "BandwidthLimitExceeded",
    "XAmzContentSHA256Mismatch", "BadDigest", "IncompleteBody",
}  # fmt: skip
# Names of client libraries' exceptions that a retry cannot help.
_REFUSALS = {
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "NoRegionError",
    "ParamValidationError", "InvalidRegionError", "UnauthorizedSSOTokenError", "SSOTokenLoadError",
}  # fmt: skip
_ADVICE = {
    "NoCredentialsError": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or a profile) in the environment",
    "AccessDenied": "check the credentials in the environment and their permissions",
    "InvalidAccessKeyId": "check the credentials in the environment",
    "SignatureDoesNotMatch": "check the credentials in the environment",
    "NoSuchBucket": "make the bucket first, or check its name",
}


def error_code(error: BaseException) -> tuple[str, int]:
    """Return the store's own code for ``error`` and the HTTP status; ("", 0) if it has none."""
    cause: BaseException | None = error
    for _ in range(4):
        response = getattr(cause, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return str(response.get("Error", {}).get("Code", "")), int(status or 0)
        cause = cause.__cause__ if cause is not None else None
    return "", 0


def classify_error(error: Exception) -> ErrorKind:
    """Return what ``error``, which a client library raised, means for the operation."""
    code, status = error_code(error)
    if code == "NoSuchBucket":
        return "refused"
    if code in ("NotImplemented", "501") or status == 501:
        return "no-conditions"
    if code in _TRANSIENT_CODES or status in (408, 409, 429) or status >= 500:
        return "passing"
    if status == 412 or isinstance(error, (PreconditionFailed, FileExistsError)):
        return "clash"
    if status == 404 or isinstance(error, FileNotFoundError):
        return "absent"
    if 400 <= status < 500 or isinstance(error, (PermissionError, IsADirectoryError, NotADirectoryError, ImportError)):
        return "refused"
    if any(cls.__name__ in _REFUSALS for cls in type(error).__mro__):
        return "refused"
    if isinstance(error, (TypeError, ValueError, LookupError, AttributeError, NotImplementedError)):
        return "refused"
    # Connections that were refused or reset, timeouts, and the client libraries' names for these.
    return "passing"


def describe_error(error: BaseException) -> str:
    """Describe ``error`` in a few words, with advice if there is any."""
    code, status = error_code(error)
    name = code or ("no answer in time" if isinstance(error, TimeoutError) else type(error).__name__)
    text = " ".join(str(error).split())[:200]
    summary = f"{name}{f' {status}' if status and str(status) != name else ''}{f': {text}' if text else ''}"
    advice = _ADVICE.get(name, "")
    return f"{summary}; {advice}" if advice else summary
