"""A project's model settings, with local paths resolved."""

from __future__ import annotations

from dataclasses import replace

from rlhf.config.project import ModelConfig, ProjectConfig

ADAPTER_CONFIG = "adapter_config.json"
"""The file of an adapter's folder that names its base."""


def base_settings(project: ProjectConfig) -> ModelConfig:
    """The project's base model."""
    return located(project.model, project)


def stage_settings(project: ProjectConfig, stage: str) -> ModelConfig:
    """The model a stage starts from where it has no parent, with the stage's own adapter settings."""
    return located(project.stage_model(stage), project)


def located(config: ModelConfig, project: ProjectConfig) -> ModelConfig:
    """The settings with each local path as it is from here: relative paths may count from the YAML's folder."""
    return replace(
        config,
        name_or_path=_resolved(config.name_or_path, project),
        tokenizer=_resolved(config.tokenizer, project),
        chat_template=_resolved(config.chat_template, project),
    )


def _resolved(path: str | None, project: ProjectConfig) -> str | None:
    return str(project.resolve(path)) if path else path
