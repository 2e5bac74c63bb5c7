"""Flags from whatever OpenFeature provider an application has set up; needs the extra ``openfeature``."""

from dataclasses import fields
from typing import Final

from openfeature import api
from openfeature.client import OpenFeatureClient
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ErrorCode
from openfeature.provider import ProviderStatus
from openfeature.provider.no_op_provider import NoOpProvider

from dwcp_fast.errors import ConfigError
from dwcp_fast.policy.rollout import RolloutFlags
from dwcp_fast.rollout.flags import node_name

__all__ = ["OpenFeatureFlags"]

DEFAULTS: Final = RolloutFlags()


class OpenFeatureFlags:
    """The flags of a rollout by their names, evaluated for this node as the targeting key.

    >>> from dwcp_fast.rollout.flags import use_flags
    >>> use_flags(OpenFeatureFlags())
    >>> use_flags(None)
    """

    name = "OpenFeature"

    def __init__(self, client: OpenFeatureClient | None = None, *, node: str | None = None) -> None:
        """Note whom to ask.

        Args:
            client: The client; None for that of the default domain.
            node: The targeting key; None for the name of this node.
        """
        self._client = client or api.get_client()
        self._node = node

    def read(self) -> dict[str, object]:
        """Evaluate every flag; one that the provider does not know is left out.

        Raises:
            ConfigError: There is no provider, it is not ready, or cannot evaluate a flag.
        """
        client = self._client
        if isinstance(client.provider, NoOpProvider):
            raise ConfigError("no OpenFeature provider is set")
        if client.get_provider_status() in {ProviderStatus.NOT_READY, ProviderStatus.FATAL}:
            raise ConfigError(f"the OpenFeature provider is {client.get_provider_status().value}")
        context = EvaluationContext(targeting_key=self._node or node_name())
        found: dict[str, object] = {}
        for field in fields(RolloutFlags):
            default = getattr(DEFAULTS, field.name)
            ask = client.get_boolean_details if isinstance(default, bool) else client.get_integer_details
            told = ask(field.name, default, context)
            if told.error_code is None:
                found[field.name] = told.value
            elif told.error_code != ErrorCode.FLAG_NOT_FOUND:
                raise ConfigError(
                    f"OpenFeature gives no {field.name}: {told.error_code} {told.error_message}"
                )
        return found
