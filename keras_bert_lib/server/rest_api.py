"""The REST front: the paths, bodies and status codes of TensorFlow Serving's guide "RESTful API"."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
import threading
import urllib.parse
from collections.abc import Callable
from typing import Any

import anyio
import anyio.to_thread
import uvicorn
from google.protobuf.json_format import MessageToDict
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from keras_bert_lib.server import json_format, messages
from keras_bert_lib.server.answers import Answers, Spec, example_signature
from keras_bert_lib.server.errors import NEUTRAL, Code, RequestError, invalid

_log = logging.getLogger(__name__)
_MODEL = r"(?i:/v1/models/)([^/:]+)(?i:/versions/(\d+)|/labels/([^/:]+))?"
_ASK = re.compile(_MODEL + r"(?i::(classify|regress|predict))", re.ASCII)
_LOOK = re.compile(_MODEL + r"(?i:/(metadata))?", re.ASCII)
# As TF Serving's `http_server.cc` maps them.
_HTTP = {
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
}


class RestServer:
    """Listens from its construction on.

    One thread reads and writes the sockets; each request is answered in a thread of a pool, where it waits for the
    batcher.

    Args:
        answers: What answers.
        host: Address to listen on.
        port: Port. 0 takes any free one.
    Raises:
        OSError: if the port is taken.
    """

    def __init__(self, answers: Answers, host: str, port: int):
        self._socket = _listening(host, port)
        self.port: int = self._socket.getsockname()[1]
        config = uvicorn.Config(
            application(answers),
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            http="h11",
            ws="none",
            timeout_graceful_shutdown=int(answers.limits.timeout) + 1,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self._socket],), name="rest", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Answers what was accepted, then ends."""
        self._server.should_exit = True
        self._thread.join()
        self._socket.close()


def application(answers: Answers) -> Callable:
    """The ASGI application, without a lifespan.

    Args:
        answers: What answers.
    Returns:
        An application that any ASGI server runs.
    """
    # Touched by the event loop's thread alone.
    in_work = 0
    threads = anyio.CapacityLimiter(answers.limits.concurrency)

    async def respond(request: Request) -> Response:
        nonlocal in_work
        try:
            if in_work >= answers.limits.concurrency:
                raise RequestError(Code.RESOURCE_EXHAUSTED, f"{in_work} requests are in work. Try again later.")
            in_work += 1
            try:
                body = await _body(request, answers)
                path = request.scope["raw_path"].decode("latin-1")
                return await anyio.to_thread.run_sync(_answer, answers, request.method, path, body, limiter=threads)
            finally:
                in_work -= 1
        except _TooLargeError as error:
            return _json({"error": str(error)}, 413)
        except RequestError as error:
            return _json({"error": error.message}, _HTTP[error.code])
        except ClientDisconnect:
            return Response(status_code=499)
        except Exception:
            _log.exception("%s failed", request.method)
            return _json({"error": NEUTRAL}, 500)

    async def application(scope, receive, send) -> None:
        # No routes: TF Serving tells a wrong path (404) from a wrong request (400) by rules of its own.
        response = await respond(Request(scope, receive))
        await response(scope, receive, send)

    return application


class _TooLargeError(Exception):
    """A body beyond the limit."""


async def _body(request: Request, answers: Answers) -> bytes:
    """The body of a request, as far as it has one, within the limits of bytes and of time."""
    limit = answers.limits.request_bytes

    async def read() -> bytes:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise _TooLargeError(f"A request may have {limit} bytes at most. Send fewer rows at once.")
        return bytes(body)

    try:
        return await asyncio.wait_for(read(), answers.limits.timeout)
    except asyncio.TimeoutError:
        raise RequestError(Code.DEADLINE_EXCEEDED, "The deadline passed before the body was there.") from None


def _answer(answers: Answers, method: str, path: str, body: bytes) -> Response:
    if method == "POST" and (match := _ASK.fullmatch(path)):
        ask = {"predict": _predict, "classify": _classify, "regress": _regress}[match[4].lower()]
        return _json(ask(answers, _spec(match), body))
    if method == "GET" and (match := _LOOK.fullmatch(path)):
        look = _metadata if match[4] else _status
        return _json(look(answers, _spec(match)))
    if method == "GET" and path.lower() == "/v1/models":
        raise invalid("Missing model name in request.")
    if not path.lower().startswith("/v1/"):
        raise RequestError(Code.NOT_FOUND, "Not found")
    raise invalid(f"Malformed request: {method} {path}")


def _spec(match: re.Match) -> Spec:
    name, version, label = match[1], match[2], match[3]
    if version and int(version[:30]) >= 2**63:
        raise invalid(f"Failed to convert version: {version} to numeric.")
    return Spec(urllib.parse.unquote(name), int(version) if version else None, urllib.parse.unquote(label or ""))


def _predict(answers: Answers, spec: Spec, body: bytes) -> dict:
    patience = answers.patience()
    version = answers.version(spec)
    document = json_format.parse(body)
    name = json_format.signature_name(document) or "serving_default"
    if name not in version.model.signatures:
        raise invalid(f'Serving signature name: "{name}" not found in signature def')
    signature = version.model.signatures[name]
    inputs, key = json_format.inputs(document, signature.inputs)
    return json_format.outputs(answers.predict(signature, inputs, patience), key)


def _classify(answers: Answers, spec: Spec, body: bytes) -> dict:
    return json_format.classifications(*_with_examples(answers, answers.classify, spec, body))


def _regress(answers: Answers, spec: Spec, body: bytes) -> dict:
    return json_format.regressions(_with_examples(answers, answers.regress, spec, body))


def _with_examples(answers: Answers, ask: Callable, spec: Spec, body: bytes) -> Any:
    patience = answers.patience()
    document = json_format.parse(body)
    examples = json_format.examples(document)
    named = Spec(spec.name, spec.version, spec.label, json_format.signature_name(document))
    return ask(example_signature(answers.version(named), named), examples, patience)


def _status(answers: Answers, spec: Spec) -> dict:
    return MessageToDict(messages.model_status(answers.statuses(spec)), always_print_fields_with_no_presence=True)


def _metadata(answers: Answers, spec: Spec) -> dict:
    version = answers.version(spec)
    options = {"always_print_fields_with_no_presence": True, "preserving_proto_field_name": True}
    return {
        "model_spec": MessageToDict(messages.model_spec(version.name, version.number), **options),
        "metadata": {"signature_def": MessageToDict(messages.signatures(version), **options)},
    }


def _json(content: Any, status: int = 200) -> Response:
    """JSON with NaN and Infinity as TF Serving writes them, which starlette's own refuses."""
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    return Response(text.encode("utf-8", "replace"), status, media_type="application/json")


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where the protocol is named. Without it each answer takes 40 ms more.
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        server.bind((host, port))
        server.listen(512)
    except OSError as error:
        server.close()
        raise OSError(
            f"The REST port must be free. Received: {host}:{port}. `rest_port=0` takes any free one. ({error.strerror})"
        ) from None
    return server
