"""The closed sets: labels, regions, assertions. Everything else is open and lives in the banks."""

from typing import Final

# CheXpert's own order (Irvin et al., 2019). Labels are always read by name, never by position.
LABELS: Final = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Lesion",
    "Lung Opacity",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# The 12 regions of the paper's anatomy bank, in bank order.
REGIONS: Final = (
    "abdomen",
    "cardiac silhouette",
    "left apical zone",
    "left hilar structures",
    "left lung",
    "mediastinum",
    "right apical zone",
    "right hilar structures",
    "right lung",
    "whole lung",
    "spine",
    "trachea",
)
ASSERTIONS: Final = ("positive", "negative", "uncertain")
# A label's value in a CheXpert vector; a label that is not mentioned is None.
LABEL_VALUES: Final = {"positive": 1, "negative": 0, "uncertain": -1}
