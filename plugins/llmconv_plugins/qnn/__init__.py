"""Qualcomm's QNN compiler and HTP simulator, each in child processes where a crash cannot take llmconv down."""
