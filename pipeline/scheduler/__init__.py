"""Build many rows with many workers. The only package that uses Ray.

``runner`` runs a plan. ``task_tracker`` holds the state of all rows, ``actor_pool`` the workers. ``worker`` is the Ray
actor, ``batch`` builds one batch in a process (also with ``--serial``). ``ray_api`` has the calls of Ray with types,
``cluster`` starts and joins Ray. ``output_root`` claims and publishes rows, ``file_lock`` keeps two runs off one asset.
``run_log`` writes the run's record, ``progress`` shows it. Importing this package imports none of these modules.
"""
