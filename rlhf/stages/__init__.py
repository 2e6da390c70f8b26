"""The stages, one file each: adding a stage is adding a file whose `STAGE` says what `rlhf.workflow.Stage` describes.

Nothing heavy is imported here but inside functions. Modules whose name starts with an underscore are no stages.
"""
