"""Request errors that exist only because there is HTTP."""

from core.errors import InvalidRequest, Overloaded, RequestError


class MalformedJson(InvalidRequest):
    """The body is not strict UTF-8 JSON, or not an object."""

    code = "invalid_json"


class DuplicateKey(InvalidRequest):
    """An object of the body has a key twice."""

    code = "duplicate_key"


class InvalidText(InvalidRequest):
    """A text is no sequence of Unicode characters."""

    code = "invalid_text"


class UnknownParameter(InvalidRequest):
    """The body has a key that means nothing here."""

    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    """A key of the OpenAI API whose feature is not implemented."""

    code = "unsupported_parameter"


class UnsupportedContent(UnsupportedParameter):
    """A message holds something that is not text."""

    code = "unsupported_content"


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


class UnsupportedMediaType(RequestError):
    """The body is not plain JSON."""

    code = "unsupported_media_type"


class HeadersTooLarge(RequestError):
    """Too many headers, or too long ones."""

    code = "headers_too_large"


class BadHost(RequestError):
    """The Host header names a machine that this server is not."""

    code = "bad_host"


class OverTokenLimit(InvalidRequest):
    """More tokens than the key may ever use in a minute; waiting does not help."""

    code = "request_too_large"


class RateLimited(Overloaded):
    """The key is over one of its limits for now."""

    code = "rate_limit_exceeded"


class SlowClient(RequestError):
    """The client does not read its stream."""

    code = "slow_client"


class RouteNotFound(RequestError):
    """No such path."""

    code = "not_found"


class Forbidden(RequestError):
    """The key is known, and may not do this."""

    code = "forbidden"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
