"""The secret key and its file."""

from __future__ import annotations

import json
import os
import struct
import threading
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from hesplit_native import _core
from hesplit_native.errors import KeyMismatchError, ParameterError, WireError
from hesplit_native.files import make_folder, write_atomically
from hesplit_native.layer.parameters import Parameters
from hesplit_native.layer.public_key import EncryptedArray, PublicKey

# An encrypted key file: magic, version, scrypt parameters (log2 n, r, p), salt, nonce, then AES-256-GCM over the plain file
# with everything before as associated data.
_MAGIC = b"HESK\x01"
_HEADER = struct.Struct("<5sBBB16s12s")
_SCRYPT = (17, 8, 1)  # 128 MiB and about 300 ms
_SCRYPT_READ = (_SCRYPT, (15, 8, 1))  # files of earlier versions; other costs could take any memory
_MAX_FILE = 1 << 20


class SecretKey:
    """A ternary CKKS secret. Lives in native memory, which is zeroed when it is freed; it cannot be pickled or copied."""

    __slots__ = ("_native", "_parameters")

    def __init__(self, native: _core.SecretKey) -> None:
        self._native = native
        self._parameters = Parameters._wrap(native.parameters)

    @classmethod
    def generate(cls, parameters: Parameters) -> SecretKey:
        """A fresh key from the operating system's random generator."""
        return cls(_core.SecretKey.generate(parameters._native))

    @property
    def parameters(self) -> Parameters:
        """The parameters it was made for."""
        return self._parameters

    @property
    def id(self) -> str:
        """The random public identifier that travels with requests, as 32 hexadecimal digits."""
        return self._native.id.hex()

    def public_key(self) -> PublicKey:
        """A key with which others encrypt for this one; a fresh one at every call, all of them alike.

        Raises
        ------
        ParameterError
            When the parameters are not for that; `PublicKey` says which are.
        """
        return PublicKey(self._native.public_key())

    def decrypt(self, encrypted: EncryptedArray) -> npt.NDArray[np.float64]:
        """The numbers of an array, or of a sum of arrays, to within its `EncryptedArray.error_bound`; of its shape.

        The noise is rounded off, so what is returned follows from what was encrypted and may be released. That holds for arrays
        that were made by the rules. After a RangeError nobody should learn more of this key's decryptions: use another one.

        Raises
        ------
        KeyMismatchError
            An array under another key or other parameters.
        RangeError
            What no honest sender makes: numbers beyond the agreed bound, too much noise, or more summands than were counted.
        """
        return encrypted._decrypt(self._native)

    def save(self, path: str | os.PathLike[str], passphrase: str | None = None) -> None:
        """Write the key to a file that only its owner can read, encrypted when a passphrase is given.

        The file is replaced atomically. Encryption is AES-256-GCM under a key that scrypt derives from the passphrase.
        """
        plain = self._native.to_bytearray()
        try:
            data = bytes(plain) if passphrase is None else _encrypt(plain, passphrase)
        finally:
            plain[:] = bytes(len(plain))
        write_atomically(Path(path), data)

    @classmethod
    def load(cls, path: str | os.PathLike[str], passphrase: str | None = None) -> SecretKey:
        """Read what `save` wrote.

        Raises
        ------
        WireError
            When the file is not an undamaged key file, or needs a passphrase and none is given.
        KeyMismatchError
            When the passphrase is wrong.
        """
        path = Path(path)
        if path.stat().st_size > _MAX_FILE:
            raise WireError(f"{path} is too large to be a key file")
        data = bytearray(path.read_bytes())
        try:
            if data.startswith(_MAGIC):
                if passphrase is None:
                    raise WireError(f"{path} is encrypted; give its passphrase")
                data = _decrypt(data, passphrase, path)
            return cls(_core.SecretKey.from_bytes(data))
        finally:
            data[:] = bytes(len(data))

    def __repr__(self) -> str:
        return f"SecretKey(id={self.id}, parameters={self.parameters!r})"

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise TypeError("a secret key cannot be pickled or copied; use SecretKey.save(path, passphrase)")


class ReleaseLedger:
    """How many decryptions were released under one key, in a file that never counts backwards. Safe to use from several threads.

    The flooding of every release is sized for `Parameters.releases` of them (docs/security.md), so a count that a crash forgets
    would void it. Releases are reserved in the file before they are made, many at a time; what a crash leaves unused is lost.
    Several ledgers may count in one file, also in several processes: each reserves for itself, under a lock beside the file.

    Attributes
    ----------
    released
        Releases that were made or reserved when this ledger last looked, and those that it counted since.

    Raises
    ------
    WireError
        When the file is damaged.
    KeyMismatchError
        When it counts for another key.
    """

    _RESERVED = 1024
    _SECONDS = 60.0  # to wait for others who reserve

    def __init__(self, path: str | os.PathLike[str], key: SecretKey) -> None:
        self._path = Path(path)
        self._key = key
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.released = self._reserved = self._read()
        key._native.released_before(min(self.released, key.parameters.releases))

    def _read(self) -> int:
        if not self._path.exists():
            return 0
        try:
            values = json.loads(self._path.read_text(encoding="utf-8"))
            key, released = values["key"], values["released"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise WireError(f"{self._path} is not a count of releases, or is damaged") from error
        if key != self._key.id:
            raise KeyMismatchError(f"{self._path} counts the releases under another key")
        if type(released) is not int or released < 0:
            raise WireError(f"{self._path} is damaged")
        return released

    def take(self) -> None:
        """Count one release, durably, before it is made.

        Raises
        ------
        ParameterError
            When as many as the parameters allow were reserved already.
        OSError
            When the file cannot be written, or is locked for a minute.
        """
        with self._lock:
            # What a parent reserved before it forked is the parent's.
            if self.released >= self._reserved or self._process != os.getpid():
                self._reserve()
            self.released += 1

    def _reserve(self) -> None:
        from filelock import FileLock

        allowed = self._key.parameters.releases
        make_folder(self._path.parent)
        with FileLock(self._path.with_name(f".{self._path.name}.lock"), timeout=self._SECONDS):
            # Others may have reserved since, and clients without a ledger released under this key.
            released = max(self._read(), self._reserved, self._key._native.released)
            if released >= allowed:
                raise ParameterError(
                    f"the parameters allow {allowed} flooded releases under one key, and as many were made or reserved; "
                    "generate a new key"
                )
            # Few when few are left: one ledger shall not take them all from another.
            reserved = released + min(self._RESERVED, max(1, (allowed - released) // 64))
            write_atomically(self._path, json.dumps({"key": self._key.id, "released": reserved}).encode())
        self.released, self._reserved, self._process = released, reserved, os.getpid()


def _cipher(passphrase: str, salt: bytes, log_n: int, r: int, p: int) -> Any:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

    return AESGCM(Scrypt(salt=salt, length=32, n=1 << log_n, r=r, p=p).derive(passphrase.encode()))


def _encrypt(plain: bytearray, passphrase: str) -> bytes:
    salt, nonce = os.urandom(16), os.urandom(12)
    header = _HEADER.pack(_MAGIC, *_SCRYPT, salt, nonce)
    sealed: bytes = _cipher(passphrase, salt, *_SCRYPT).encrypt(nonce, plain, header)
    return header + sealed


def _decrypt(data: bytearray, passphrase: str, path: Path) -> bytearray:
    from cryptography.exceptions import InvalidTag

    if len(data) <= _HEADER.size:
        raise WireError(f"{path} is truncated")
    _, log_n, r, p, salt, nonce = _HEADER.unpack_from(data)
    if (log_n, r, p) not in _SCRYPT_READ:
        raise WireError(f"{path} was written by another version or is damaged")
    try:
        plain = _cipher(passphrase, salt, log_n, r, p).decrypt(
            nonce, bytes(data[_HEADER.size :]), bytes(data[: _HEADER.size])
        )
    except InvalidTag:
        raise KeyMismatchError(f"wrong passphrase for {path}, or the file is damaged") from None
    return bytearray(plain)
