"""A project's model settings with local paths found."""

from __future__ import annotations

from dataclasses import replace

from rlhf.config.project import ModelConfig, ProjectConfig


def base_settings(project: ProjectConfig) -> ModelConfig:
    """The project's base model."""
    return located(project.model, project)


def stage_settings(project: ProjectConfig, stage: str) -> ModelConfig:
    """The model a stage starts from where it has no parent, with the stage's own adapter settings."""
    return located(project.stage_model(stage), project)


def located(config: ModelConfig, project: ProjectConfig) -> ModelConfig:
    """Local paths of the settings, found from the YAML's folder where they are not there as they stand."""
    given = {field: getattr(config, field) for field in ("name_or_path", "tokenizer", "chat_template")}
    return replace(config, **{field: str(project.resolve(path)) for field, path in given.items() if path})
