"""What every version is asked and read to. After a change of these, figures do not compare with
those of before."""

from typing import Final

QUESTIONS: Final = (
    "What is the capital of France?",
    "Count from one to five.",
    "Write one sentence about the sea.",
    "What is two plus two?",
)
SIMILAR: Final = ("A cat sits on the mat.", "A kitten is sitting on a rug.")
DISSIMILAR: Final = "Interest rates rose sharply on Monday."

PROBE_TEXT: Final = """\
The ferry left the harbour a little after six, when the light was still grey and the gulls had only
begun to argue over the nets. Nobody on deck spoke. A boy in a yellow coat leaned on the rail and
counted the boats that they passed, and each time he lost count he began again with the lighthouse.
His grandmother sat behind him with a basket of bread on her knees. She had made this crossing every
spring for forty years, first to sell cheese at the market and later to visit her daughter, who had
married a carpenter on the other side and never learned to like the sea.

By seven the wind had turned. The captain, a careful man who trusted his instruments less than his
left knee, took the longer way round the island, and the passengers who knew the water nodded to one
another. It would cost them half an hour. It would also keep the coffee in the cups. When the sun
came through at last, it fell on the white houses above the quay, on the church with its crooked
tower, and on a small woman with a red scarf who had been waiting there since the first bell.
"""
