"""What a gateway shows to Prometheus."""

from core.config import Config


class MetricsConfig(Config):
    """The page at `/metrics`."""

    vllm_names: bool = True
    """Show what vLLM shows too under vLLM's names, which autoscalers, gateways and dashboards look for."""
    tenants: bool = True
    """Count tokens by tenant, for callers with API keys; at most 256 tenants, the rest together."""
