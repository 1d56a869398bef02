"""The Kubeflow pipeline and its components, under a name of our own.

``pipelines`` and ``components`` are links to the repository's folders of these names. A wheel has the files themselves.
"""
