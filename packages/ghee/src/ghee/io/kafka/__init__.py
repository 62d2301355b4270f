"""Kafka: topics as a source, bounded and endless, and as a sink. `client.py` is the only file that imports confluent_kafka.

Here live offsets, messages and the consumer group's member. What a batch or an epoch is to the ranks is the business of
the rest of ghee (docs/protocol.md, "Endless sources").
"""
