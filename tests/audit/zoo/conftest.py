"""The zoo has no tests and no examples; collected as doctest modules, its cases would be registered twice."""

collect_ignore_glob = ["*.py"]
