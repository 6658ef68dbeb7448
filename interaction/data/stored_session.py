"""The stored session: what a record on disk holds, and what training and evaluation read.

All sessions of a data set have the same number of micro-turns, called turns here. A micro-turn is
200 ms: 3,200 samples at 16 kHz. The fields are

- `user` int16[turns * 3200], the PCM of the user's side;
- `model` int16[turns * 3200], the PCM of the model's replies; reply n is the output of micro-turn n
  and plays one micro-turn later, from sample 3200 (n + 1) of the user's side on;
- `text` int32[turns], the model's text-out tokens;
- `user_transcript` int32[turns, 2], the words of the user by slots of 100 ms, NONE where none ends
  and PAD where they are unknown, which trains nothing;
- `arrived` and `arrived_slot` int32[ARRIVALS], text that reaches the model, see
  `reasoning_tokens.arrival_arrays`;
- `prefilled` int32[], `reasoning` and `reasoning_wanted` int32[REASONING_TOKENS], one delegation as
  the background model reads and writes it, see `reasoning_tokens.reasoning_arrays`;
- `meta`, a JSON object as text: the events, under "words" the words of both sides with their times
  (see `stored_conversation.pack_words`), and what else is known about the session.
"""

from typing import Any

import numpy as np

StoredSession = dict[str, Any]  # the fields above

ARRAYS = {  # dtype of each field that is an array
    "user": np.int16,
    "model": np.int16,
    "text": np.int32,
    "user_transcript": np.int32,
    "arrived": np.int32,
    "arrived_slot": np.int32,
    "prefilled": np.int32,
    "reasoning": np.int32,
    "reasoning_wanted": np.int32,
}
