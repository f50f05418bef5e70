"""Interchange interventions on counterfactual pairs: pairs, training, accuracy, controls, depth and cost."""
