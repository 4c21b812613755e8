"""Error responses, all of one format, and the exception handlers that build them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from alarm_models.errors import RecipeError
from alarm_service.errors import (
    BadRequest,
    ClientDisconnected,
    Invalid,
    NotFound,
    ServiceError,
    format_validation_errors,
    shortened,
)
from alarm_service.schemas import REQUEST_KEYS

__all__ = ["REQUEST_ID", "REQUEST_ID_HEADER", "add_error_handlers", "error_response"]

_MAX_MESSAGE = 4000

REQUEST_ID_HEADER = "X-Request-Id"

#: The key of the request id in a request's scope.
REQUEST_ID = "alarm.request_id"


def error_response(error: ServiceError) -> JSONResponse:
    """Return the response to an error, with its status and message."""
    # Quoted names have been shortened; no other message is this long.
    message = shortened(error.message, _MAX_MESSAGE)
    # A lone surrogate that is quoted cannot be encoded as UTF-8.
    message = message.encode(errors="backslashreplace").decode()
    body = {"code": error.code, "message": message, "retryable": error.retryable}
    headers = None if error.retry_after_s is None else {"Retry-After": str(error.retry_after_s)}
    return JSONResponse({"error": body}, error.status, headers)


def add_error_handlers(app: FastAPI) -> None:
    """Register a handler for every exception that a route may raise."""

    @app.exception_handler(ServiceError)
    async def service_error(request: Request, error: ServiceError) -> Response:
        return error_response(error)

    @app.exception_handler(RecipeError)
    async def recipe_error(request: Request, error: RecipeError) -> Response:
        return error_response(Invalid(str(error)))

    @app.exception_handler(RequestValidationError)
    async def validation_error(request: Request, error: RequestValidationError) -> Response:
        response = error_response(_refused(error.errors()))
        if any(isinstance(fault.get("input"), bytes) for fault in error.errors()):
            response.headers["Accept-Post"] = "application/json"  # another content type
        return response

    @app.exception_handler(ClientDisconnected)
    async def client_disconnected(request: Request, error: ClientDisconnected) -> Response:
        return Response(status_code=499)

    @app.exception_handler(HTTPException)
    async def http_error(request: Request, error: HTTPException) -> Response:
        response = error_response(_from_http(error))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def unexpected_error(request: Request, error: Exception) -> Response:
        response = error_response(ServiceError("internal error: see the server's log"))
        if REQUEST_ID in request.scope:  # this response passes no middleware
            response.headers[REQUEST_ID_HEADER] = request.scope[REQUEST_ID]
        return response


def _refused(faults: Sequence[Mapping[str, Any]]) -> ServiceError:
    if any(fault["type"] == "json_invalid" for fault in faults):
        return BadRequest(f"the body is not JSON: {faults[0].get('ctx', {}).get('error', '')}")
    if [(fault["type"], list(fault["loc"])) for fault in faults] == [("missing", ["body"])]:
        return BadRequest("the body is empty: send a JSON object")
    return Invalid(format_validation_errors(faults, str(faults[0]["loc"][0]), keys=REQUEST_KEYS))


def _from_http(error: HTTPException) -> ServiceError:
    if error.status_code == 400:
        return BadRequest("the body cannot be read as JSON in UTF-8")
    if error.status_code == 404:
        return NotFound("no such path; see /docs")
    response = ServiceError(str(error.detail))
    response.status = error.status_code
    response.code = str(error.detail).lower().replace(" ", "_")
    return response
