"""Stub until the plugin registry lands."""
import pluggy
hookspec = pluggy.HookspecMarker("llmconv")
hookimpl = pluggy.HookimplMarker("llmconv")
