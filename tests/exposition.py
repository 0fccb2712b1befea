"""Reads what /metrics says with prometheus_client's own parser, which the daemon does not use."""

from prometheus_client.parser import text_string_to_metric_families


class Exposition:
    """One scrape."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def value(self, name: str, **labels: str) -> float:
        """Return one sample; KeyError where it is not shown."""
        return self.samples[name, frozenset(labels.items())]

    def labels(self, name: str, label: str) -> set[str]:
        """Return the values of a label that are shown of a sample."""
        return {dict(labels)[label] for found, labels in self.samples if found == name}
