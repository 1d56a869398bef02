"""Kubernetes' grammar of names, labels, quantities and resources: a cluster says what it does not take when a pod is made, after hours.

Each function returns the text, or raises ValueError with what is wrong, to follow the name of a field. Source: apimachinery's
validation and resource.Quantity.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator

_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
_SUBDOMAIN = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_NAME_PART = re.compile(r"[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")  # of a label's key and value, of a resource
_QUANTITY = re.compile(r"(\d+\.?\d*|\.\d+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?\d{1,2})?", re.ASCII)
_POWERS = {suffix: Decimal(1000) ** n for n, suffix in enumerate(("n", "u", "m", "", "k", "M", "G", "T", "P", "E"), -3)}


def name(text: str) -> str:
    """Of an object: a DNS subdomain."""
    if len(text) > 253 or not _SUBDOMAIN.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no name of a Kubernetes object: small letters, digits, - and . between them")
    return text


def namespace(text: str) -> str:
    if not re.fullmatch(_LABEL, text):
        raise ValueError(f"{_shown(text)} is no Kubernetes namespace: up to 63 small letters, digits, and - between them")
    return text


def label_key(text: str) -> str:
    """``name`` or ``domain/name``."""
    prefix, slash, own = text.rpartition("/")
    if not _NAME_PART.fullmatch(own) or (slash and (len(prefix) > 253 or not _SUBDOMAIN.fullmatch(prefix))):
        raise ValueError(f"{_shown(text)} is no key of a Kubernetes label, such as team or example.com/team")
    return text


def label_value(text: str) -> str:
    if text and not _NAME_PART.fullmatch(text):
        raise ValueError(
            f"{_shown(text)} is no value of a Kubernetes label: up to 63 letters, digits, -, _ and ., a letter or a digit at both ends"
        )
    return text


def resource(text: str) -> str:
    """What a device is asked for by; it has its maker's domain."""
    domain, _, own = text.partition("/")
    if not (domain and own) or len(domain) > 253 or not _SUBDOMAIN.fullmatch(domain) or not _NAME_PART.fullmatch(own):
        raise ValueError(f"{_shown(text)} is no resource that a pod can ask for, such as nvidia.com/gpu or amd.com/gpu")
    return text


def resource_or_none(text: str) -> str:
    return text and resource(text)


def quantity(text: str) -> str:
    if not _QUANTITY.fullmatch(text):
        raise ValueError(f"{_shown(text)} is no Kubernetes quantity, such as 500m, 2, 1.5, 512Mi or 8Gi")
    return text


def amount(text: str) -> Decimal:
    """Of a quantity, in its unit."""
    found = _QUANTITY.fullmatch(text)
    if not found:
        raise ValueError(f"{_shown(text)} is no Kubernetes quantity")
    number, suffix = Decimal(found[1]), found[2] or ""
    if suffix.endswith("i"):
        return number * Decimal(1024) ** (1 + "KMGTPE".index(suffix[0]))
    if suffix in _POWERS:
        return number * _POWERS[suffix]
    return number * Decimal(10) ** int(suffix[1:])


def _shown(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


Name = Annotated[str, AfterValidator(name)]
Quantity = Annotated[str, AfterValidator(quantity)]
Resource = Annotated[str, AfterValidator(resource)]
ResourceOrNone = Annotated[str, AfterValidator(resource_or_none)]
LabelKey = Annotated[str, AfterValidator(label_key)]
LabelValue = Annotated[str, AfterValidator(label_value)]
