"""fnlm's models as other programs want them; nothing here is imported unless it is asked for."""
