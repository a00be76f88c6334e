"""The built-in plugins: passes, sources, lowerings, backends and runtimes, registered as a third party's would be."""
