"""A task with two variables that needs no files: number and gender of a noun, each asked for by its own prompts."""

from __future__ import annotations

from road_interp.causal.entity_task import EntityTask

# Singular and plural, of a male and of a female noun.
NOUNS = """
king kings queen queens; prince princes princess princesses; duke dukes duchess duchesses; emperor emperors empress empresses;
father fathers mother mothers; son sons daughter daughters; brother brothers sister sisters; uncle uncles aunt aunts;
nephew nephews niece nieces; grandfather grandfathers grandmother grandmothers; grandson grandsons granddaughter granddaughters;
husband husbands wife wives; man men woman women; boy boys girl girls; gentleman gentlemen lady ladies;
actor actors actress actresses; waiter waiters waitress waitresses; host hosts hostess hostesses; hero heroes heroine heroines;
heir heirs heiress heiresses; god gods goddess goddesses; monk monks nun nuns; wizard wizards witch witches;
stepfather stepfathers stepmother stepmothers; godfather godfathers godmother godmothers; widower widowers widow widows;
groom grooms bride brides; landlord landlords landlady landladies; policeman policemen policewoman policewomen;
businessman businessmen businesswoman businesswomen; steward stewards stewardess stewardesses; bull bulls cow cows;
rooster roosters hen hens; stallion stallions mare mares; salesman salesmen saleswoman saleswomen;
count counts countess countesses
"""
PROMPTS = {
    "number": (
        "dog: one. cats: many. tree: one. houses: many. %s:",
        "The table is one thing. The chairs are many things. The %s",
        "car - singular; birds - plural; books - plural; lamp - singular; %s -",
    ),
    "gender": (
        "boy: male. girls: female. mother: female. fathers: male. %s:",
        "he: man. she: woman. he: uncle. she: aunt. he: brothers. she: sisters. he: boy. she: girl. Is it he or she? %s:",
        "boys - male; daughter - female; sisters - female; man - male; %s -",
    ),
}
VALUES = {"number": (("one", "many"), ("is", "are"), ("singular", "plural"))}


def number_and_gender() -> EntityTask:
    """Nouns with the variables "number" and "gender"; the four forms of a noun are in one split."""
    values: dict[str, dict[str, str]] = {}
    split = {}
    for index, forms in enumerate(NOUNS.replace("\n", " ").split(";")):
        for place, noun in enumerate(forms.split()):
            values[noun] = {"number": ("singular", "plural")[place % 2], "gender": ("male", "female")[place // 2]}
            split[noun] = ("train", "train", "test", "train", "val", "train", "test")[index % 7]
    prompts = {"number": PROMPTS["number"][2:], "gender": (PROMPTS["gender"][0], PROMPTS["gender"][2])}
    return EntityTask("number and gender", values, prompts, split)
