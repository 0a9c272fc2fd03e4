"""How names of machines are spelled: in an address to connect to or listen on, and in a server's certificate."""

from __future__ import annotations

import ipaddress
import re
import unicodedata

from hesplit_native.errors import ParameterError

_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_LONGEST = 253  # characters, by the rules of DNS


def normal_host(text: str) -> str:
    """One spelling for a host: ``Server.Example.`` is server.example, ``[::1]`` is ::1, letters beyond ASCII become xn-- labels.

    Raises
    ------
    ParameterError
        Text that no client can look up: empty, a URL, with a port, an address with a slip, a label that is none.
    """
    host = text.strip()
    bracketed = host.startswith("[") and host.endswith("]")
    try:
        return str(ipaddress.ip_address(host[1:-1] if bracketed else host))
    except ValueError:
        pass
    why = _why_no_name(host)
    if why:
        raise ParameterError(f"{text!r} is neither a host name nor an address: {why}")
    name = _ascii(host.removesuffix("."))
    labels = name.split(".")
    if len(name) > _LONGEST or not all(map(_is_label, labels)):
        raise ParameterError(
            f"{text!r} is no host name: parts of 1 to 63 letters, digits and - between dots, {_LONGEST} characters in all"
        )
    if labels[-1].isdigit():
        raise ParameterError(f"{text!r} looks like an address and is none; expected one such as 192.0.2.1 or ::1")
    return name


def certificate_host(text: str) -> str:
    """`normal_host` for a certificate, which may also name all hosts of a domain (``*.clinic.example``)."""
    if text.strip().startswith("*."):
        domain = normal_host(text.strip()[2:])
        if _is_address(domain):
            raise ParameterError(f"{text!r} matches no host: after *. comes a domain, as in *.clinic.example")
        return f"*.{domain}"
    host = normal_host(text)
    if _is_address(host) and (ipaddress.ip_address(host).is_unspecified or "%" in host):
        raise ParameterError(
            f"{text!r} means something on this machine only; a certificate names the server as clients address it"
        )
    return host


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _why_no_name(host: str) -> str:
    if not host:
        return "it is empty"
    if "://" in host or "/" in host or "@" in host:
        return "give the host alone, for example server.example, without scheme, user or path"
    if ":" in host or "[" in host or "]" in host:
        return "give the host alone, without a port; IPv6 addresses look like ::1"
    if len(host) > _LONGEST + 1:
        return f"it has more than {_LONGEST} characters"
    return ""


def _ascii(name: str) -> str:
    """The name with its labels beyond ASCII as xn--; ParameterError where today's and yesterday's rules differ (ß) or none applies."""
    try:
        ascii_name = name.encode("idna").decode("ascii").lower()
        lost = ascii_name.encode("ascii").decode("idna") != unicodedata.normalize("NFKC", name).lower()
    except UnicodeError:
        lost = True
    if lost and not name.isascii():
        raise ParameterError(f"{name!r} has no unambiguous ASCII form; give its xn-- form, as it is registered")
    return name.lower() if name.isascii() else ascii_name


def _is_label(label: str) -> bool:
    if not _LABEL.fullmatch(label):
        return False
    try:
        label.removeprefix("xn--").encode("ascii").decode("punycode" if label.startswith("xn--") else "ascii")
    except UnicodeError:
        return False
    return True
