"""How models write tool calls: one module a format, which reads an answer character by character.

Begin with `choice.py`, the formats by their names. A format is a grammar, a generator that is sent one character after
the other, so that an answer reads the same however it falls into pieces. `output.py` is where a grammar writes to: it
holds what may still become a call, and gives it back as text where it becomes none. `call_object.py` reads the JSON
object that most formats have.

What all formats have in common:

- A call begins once its name and the beginning of its arguments are known. From there on its arguments are passed on
  as they come, byte for byte, valid or not, as OpenAI does.
- Behind its marker a call may have any name. Without a marker, since many tokenizers leave special tokens out of the
  text, it must be at the beginning of an answer or behind another call, have the name of a tool of the request, and
  have no key that no call has.
- White space around calls is the format's; where there is text before and behind them, that of one side stays. All
  other text is content.
- At most `MOST_HELD` characters are held. What is longer before it is a call, is none.
"""
