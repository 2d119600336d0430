"""Request errors that exist only because there is HTTP."""

from core.errors import InvalidRequest, RequestError


class MalformedJson(InvalidRequest):
    """The body is not strict UTF-8 JSON, or not an object."""

    code = "invalid_json"


class UnknownParameter(InvalidRequest):
    """The body has a key that means nothing here."""

    code = "unknown_parameter"


class UnsupportedParameter(InvalidRequest):
    """A key of the OpenAI API whose feature is not implemented."""

    code = "unsupported_parameter"


class BodyTimeout(RequestError):
    """The body did not arrive in time."""

    code = "request_timeout"


class UnsupportedMediaType(RequestError):
    """The body is not plain JSON."""

    code = "unsupported_media_type"


class RouteNotFound(RequestError):
    """No such path."""

    code = "not_found"


class MethodNotAllowed(RequestError):
    """The path exists, the method does not."""

    code = "method_not_allowed"
