"""Texts and chats as packed windows of tokens."""
