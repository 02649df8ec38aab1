"""Kafka: topics, a producer that never waits, and the log that the pipeline reads.

The only package that knows the Kafka client.
"""

import warnings

with warnings.catch_warnings():
    # The client reads its schemas in a way that Python 3.11 calls deprecated and 3.13 does not.
    warnings.simplefilter("ignore", DeprecationWarning)
    import kafka as _kafka  # noqa: F401

from pipeline.kafka import codec
from pipeline.kafka.admin import TopicState, create_topics, inspect_topics
from pipeline.kafka.client import client_options
from pipeline.kafka.consumer import KafkaLog
from pipeline.kafka.marks import MAX_CHARS, MAX_SPAN, decode_mark, encode_mark, mark_fits
from pipeline.kafka.producer import Producer

codec.install()

__all__ = [
    "MAX_CHARS",
    "MAX_SPAN",
    "KafkaLog",
    "Producer",
    "TopicState",
    "client_options",
    "create_topics",
    "decode_mark",
    "encode_mark",
    "inspect_topics",
    "mark_fits",
]
