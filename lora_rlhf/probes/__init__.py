"""Where a model that pleases its judge goes wrong: probes, what is checked on their answers, and the audit."""
