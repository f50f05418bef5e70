"""Interchange interventions on counterfactual pairs: pairs, training, accuracy, controls, cost."""
