"""A task with two variables that needs no files: number and gender of a noun, each asked for by its own prompts."""

from __future__ import annotations

from road_interp.causal.entity_task import EntityTask

# Singular and plural, of a male and of a female noun. No noun ends with one of another group, and none is in a prompt.
NOUNS = """
king kings queen queens; prince princes princess princesses; duke dukes duchess duchesses; emperor emperors empress empresses;
uncle uncles aunt aunts; nephew nephews niece nieces; husband husbands wife wives; actor actors actress actresses;
waiter waiters waitress waitresses; host hosts hostess hostesses; hero heroes heroine heroines; heir heirs heiress heiresses;
god gods goddess goddesses; monk monks nun nuns; wizard wizards witch witches; widower widowers widow widows;
groom grooms bride brides; steward stewards stewardess stewardesses; bull bulls cow cows; rooster roosters hen hens;
stallion stallions mare mares; count counts countess countesses; tiger tigers tigress tigresses; baron barons baroness baronesses;
priest priests priestess priestesses; sorcerer sorcerers sorceress sorceresses; lord lords lady ladies;
abbot abbots abbess abbesses
"""
PROMPTS = {
    "number": (
        "car - singular; birds - plural; books - plural; lamp - singular; %s -",
        "lamp: singular. houses: plural. tree: singular. cars: plural. %s:",
    ),
    "gender": (
        "boys - male; daughter - female; sisters - female; man - male; %s -",
        "boy: male. girls: female. mother: female. fathers: male. %s:",
    ),
}


def number_and_gender() -> EntityTask:
    """Nouns with the variables "number" and "gender"; the four forms of a noun are one group, in one split."""
    values: dict[str, dict[str, str]] = {}
    split, group = {}, {}
    for index, forms in enumerate(NOUNS.replace("\n", " ").split(";")):
        for place, noun in enumerate(forms.split()):
            values[noun] = {"number": ("singular", "plural")[place % 2], "gender": ("male", "female")[place // 2]}
            split[noun] = ("train", "train", "test", "train", "val", "train", "test")[index % 7]
            group[noun] = forms.split()[0]
    return EntityTask("number and gender", values, PROMPTS, split, group)
