"""Names of spans and attributes: OpenTelemetry's GenAI conventions where they have one, `eagleray.*` otherwise.

Spelled here, for the package that holds the conventions' names is no more stable than they are.
"""

# Spans; that of a request is called after its operation and model, those of a group's phases after them.
PREPARE = "prepare"
ROUTE = "route"
HOLD = "hold"
RESUME = "resume"
GROUP = "group"

# A request
OPERATION = "gen_ai.operation.name"
PROVIDER = "gen_ai.provider.name"
REQUEST_MODEL = "gen_ai.request.model"
REQUEST_STREAM = "gen_ai.request.stream"
REQUEST_CHOICES = "gen_ai.request.choice.count"
REQUEST_MAX_TOKENS = "gen_ai.request.max_tokens"
RESPONSE_MODEL = "gen_ai.response.model"
RESPONSE_ID = "gen_ai.response.id"
FINISH_REASONS = "gen_ai.response.finish_reasons"
INPUT_TOKENS = "gen_ai.usage.input_tokens"
OUTPUT_TOKENS = "gen_ai.usage.output_tokens"
CACHED_INPUT_TOKENS = "gen_ai.usage.cache_read.input_tokens"
TIME_TO_FIRST_TOKEN = "gen_ai.server.time_to_first_token"
"""Seconds. The conventions have it as a metric."""
RESUMES = "eagleray.resumes"
CHOICE = "eagleray.choice"

# Any span
ERROR = "error.type"

# Routes
GROUP_ID = "eagleray.group.id"
REFUSALS = "eagleray.route.refusals"
EXPECTED_CACHED_TOKENS = "eagleray.route.expected_cached_tokens"

# Parts
PART = "eagleray.part"
PART_TOKENS = "eagleray.part.output_tokens"
PREEMPTIONS = "eagleray.part.preemptions"
KV_WAIT = "eagleray.queue.kv_wait_s"
STAY_TOKENS = "eagleray.prefill.tokens"
STAY_CACHED_TOKENS = "eagleray.prefill.cached_tokens"

# Resumes
RESUME_FROM = "eagleray.resume.from_group"
RESUME_TO = "eagleray.resume.to_group"
RESUME_CAUSE = "eagleray.resume.cause"
RESUME_TOKENS = "eagleray.resume.output_tokens"
