"""How the broker's certificate is checked, and which one of our own is shown to it."""

import ssl
from urllib.parse import urlsplit

from daemon.errors import ConfigError
from daemon.settings import MqttSettings


def broker_tls(settings: MqttSettings) -> ssl.SSLContext | None:
    """Return what an mqtts connection is made with; None where the URL asks for no TLS.

    Raises:
        ConfigError: a file of the settings cannot be used.
    """
    if urlsplit(settings.url.get_secret_value()).scheme != "mqtts":
        return None
    setting = "CA_FILE"
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
        if settings.cert_file is not None:
            setting = "CERT_FILE or KEY_FILE"
            # Without a password OpenSSL would ask the terminal for one, and wait.
            context.load_cert_chain(settings.cert_file, settings.key_file, password="")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"INFERD_MQTT__{setting}: {error}") from error
    return context
