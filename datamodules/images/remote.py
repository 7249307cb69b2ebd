"""Reads bytes of files by URL: HTTP, and ``s3://`` or ``gs://`` through fsspec.

HTTP does not go through fsspec: if a server does not support ranges, fsspec silently fetches the whole shard
for every sample, and it does not report the file's size, which reveals a changed shard.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request

from datamodules.errors import ConfigError, DataFileError, MissingDataError

TRIES, FIRST_PAUSE = 4, 0.5
"""Number of attempts, and pause in seconds before the second one; the pause doubles each time."""

WEB, CLOUD = ("http://", "https://"), ("s3://", "gs://")


class _Passing(Exception):
    """A request that failed, but may succeed if it is repeated."""


def is_url(root: str) -> bool:
    return root.startswith((*WEB, *CLOUD))


def fetch(url: str, timeout: float, span: tuple[int, int] | None = None, total: int | None = None) -> bytes:
    """A file, or its bytes ``span[0]`` to ``span[1]`` (exclusive).

    The request is repeated after connection errors, timeouts, truncated answers, "too many requests" and
    server errors.

    Args:
        url: a URL for which ``is_url`` is true.
        timeout: of an HTTP request, in seconds; s3:// and gs:// have their own.
        span: the bytes to read; None = all.
        total: the file's size, if known.

    Raises:
        MissingDataError: there is no such file.
        DataFileError: every attempt failed, the server does not support ranges, or the file of a ``span`` is
            missing or does not have ``total`` bytes.
        ConfigError: a package for this kind of URL is not installed.
    """
    for attempt in range(1, TRIES + 1):
        try:
            cloud = url.startswith(CLOUD)
            content = _from_cloud(url, span) if cloud else _by_http(url, timeout, span, total)
            if span is None or len(content) == span[1] - span[0]:
                return content
            failure = f"{len(content)} of {span[1] - span[0]} bytes received"
        except _Passing as error:
            failure = str(error)
        if attempt < TRIES:
            time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
    raise DataFileError(f"{url} cannot be read after {TRIES} attempts: {failure} (timeout {timeout:g} s)")


def _by_http(url: str, timeout: float, span: tuple[int, int] | None, total: int | None) -> bytes:
    headers = {} if span is None else {"Range": f"bytes={span[0]}-{span[1] - 1}"}
    request = urllib.request.Request(url, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=timeout) as answer:
            if span is None:
                return answer.read()
            if answer.status != 206:
                raise DataFileError(
                    f"{url}: the server does not support range requests (status {answer.status}, not 206)"
                )
            now = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if total is not None and now.isdigit() and int(now) != total:
                raise DataFileError(changed(url, total, int(now), "DIR"))
            return answer.read(span[1] - span[0] + 1)
    except urllib.error.HTTPError as error:
        if error.code in (404, 410):
            kind = MissingDataError if span is None else DataFileError
            raise kind(f"{url} is missing (HTTP status {error.code})") from None
        if error.code == 416:
            raise DataFileError(
                f"shard {url} is truncated: it has no bytes {span}. Copy it there again"
            ) from None
        failure = f"HTTP status {error.code} {error.reason}"
        if error.code < 500 and error.code not in (408, 429):
            raise DataFileError(f"{url} cannot be read: {failure}") from None
        raise _Passing(failure) from None
    except DataFileError:
        raise
    except (OSError, http.client.HTTPException) as error:
        raise _Passing(str(getattr(error, "reason", None) or error) or type(error).__name__) from None


def _from_cloud(url: str, span: tuple[int, int] | None) -> bytes:
    import fsspec

    try:
        store, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        raise ConfigError(f"{url} needs another package: {error}") from None
    try:
        return store.cat_file(path, *(span or (None, None)))
    except FileNotFoundError:
        kind = MissingDataError if span is None else DataFileError
        raise kind(f"{url} is missing") from None
    except PermissionError as error:
        raise DataFileError(f"{url} cannot be read: {error}") from None
    except Exception as error:  # each store has its own exceptions
        raise _Passing(f"{type(error).__name__}: {error}") from None


def changed(shard: str, size: int, now: int, folder: str) -> str:
    """The error message for a shard that has ``now`` bytes and had ``size`` when it was indexed."""
    what = "is truncated" if now < size else "has changed"
    return (
        f"shard {shard} {what}: {now} bytes, {size} when it was indexed. Copy it again, or rebuild "
        f"the index with python -m datamodules.images.pack --index {folder}"
    )
