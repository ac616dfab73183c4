"""The client of s3:// that `ingest.storage` opens: patient, and with credentials that are read anew when they end.

Every request is made again as `ingest.patience` says, each by itself, so that a file is written on where its storage
was away in the middle. That is done in botocore's own hook for retries, in place of those of botocore and s3fs, which
give up after some seconds, or minutes, and tell nobody.
"""

from __future__ import annotations

from typing import Any

from botocore.exceptions import ConnectionError, HTTPClientError, SSLError  # type: ignore[import-untyped]
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem

from ingest.patience import Outage, answers

_BUSY = (429, 500, 502, 503, 504, 507, 509)
_HOOK = "needs-retry.s3"


class PatientS3(S3FileSystem):  # type: ignore[misc]
    """s3fs whose requests outlast a storage that is away, and whose credentials may change."""

    async def set_session(self, refresh: bool = False, kwargs: Any = None) -> Any:
        client = await super().set_session(refresh)
        client.meta.events.unregister(_HOOK, unique_id="retry-config-s3")
        client.meta.events.register(_HOOK, _pause, unique_id="intentrec")
        return client

    async def _call_s3(self, method: str, *arguments: Any, **options: Any) -> Any:
        """What is refused is asked once more where the credentials are others by now, as those of a session are."""
        await self.set_session()
        used = await self._credentials()
        try:
            return await super()._call_s3(method, *arguments, **options)
        except OSError as error:
            if not _is_refusal(error):
                raise
            if await self._credentials() == used:
                await self.set_session(refresh=True)
                if await self._credentials() == used:
                    raise
            return await super()._call_s3(method, *arguments, **options)

    call_s3 = sync_wrapper(_call_s3)

    async def _credentials(self) -> Any:
        found = await self.session.get_credentials()
        return found and await found.get_frozen_credentials()


def _is_refusal(error: OSError) -> bool:
    """Also 400, which is how a HEAD is refused whose token has ended."""
    response = getattr(error.__cause__, "response", {})
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 401, 403)


def _pause(response: Any, caught_exception: Exception | None, request_dict: dict[str, Any], **_: Any) -> float | None:
    """Seconds until a request is made again; None where it is not."""
    answers.add()
    context = request_dict["context"]
    reason = _reason(response, caught_exception)
    outage: Outage | None = context.get("outage")
    if reason is None:
        if outage is not None and caught_exception is None:
            outage.over()
        return None
    if outage is None:
        place = context.get("input_params", {})
        parts = (place.get("Bucket", ""), place.get("Key") or place.get("Prefix") or "")
        outage = context["outage"] = Outage("s3://" + "/".join(filter(None, parts)))
    return outage.pause(reason)


def _reason(response: Any, error: Exception | None) -> str | None:
    """Why a request has failed, where that can pass."""
    if error is not None:
        passes = isinstance(error, ConnectionError | HTTPClientError) and not isinstance(error, SSLError)
        return str(error) if passes else None
    answer, content = response
    found = content.get("Error", {})
    if answer.status_code not in _BUSY and found.get("Code") not in ("RequestTimeout", "SlowDown"):
        return None
    return f"{answer.status_code} {found.get('Code', '')}: {found.get('Message', '')}"
