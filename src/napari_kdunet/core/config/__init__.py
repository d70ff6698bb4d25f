"""The settings of a training, of a distillation and of objects, and how a setting is declared."""
