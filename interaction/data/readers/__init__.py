"""Readers of recordings from elsewhere: each is an iterator of conversations, read one by one.

Records of live conversations are read by `interaction.engine.recorded_conversation`.
"""
