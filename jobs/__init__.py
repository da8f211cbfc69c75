"""What a job is: its spec and states, the database that holds the truth, artifacts, links, queues, settings.

Shared by the HTTP side and by the workers. It loads neither torch nor a web framework.
"""
