"""How the broker's certificate is checked, and which one of our own is shown to it."""

import ssl

from daemon.errors import ConfigError
from daemon.settings import MqttSettings


def broker_tls(settings: MqttSettings) -> ssl.SSLContext:
    """Return what an mqtts connection is made with.

    Raises:
        ConfigError: a file of the settings cannot be used.
    """
    setting = "CA_FILE"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            setting = "CERT_FILE or KEY_FILE"
            context.load_cert_chain(settings.cert_file, settings.key_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"INFERD_MQTT__{setting}: {error}") from error
    return context
