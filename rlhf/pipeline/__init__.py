"""From a project to its artefacts: what each stage records, whether it is stale, and running what is."""
