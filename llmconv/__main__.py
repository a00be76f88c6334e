"""`python -m llmconv`."""

from llmconv.cli import main

main()
